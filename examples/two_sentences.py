"""Draw standard against valuation attention on the two sentences of the method's source, and test its claims.

    python examples/two_sentences.py [MODEL] [PROBES]

MODEL is a hub name, a folder or "bundled" (the default); PROBES a file of probes fitted on that model, whose valuations
then stand beside the annotated ones. Writes two_sentences.png into the current folder. Needs emoprobe installed, or the
root of a checkout on PYTHONPATH.

The sentences are those of J. Marín, "Emotion-Informed Valuation Mechanism for Improved AI Alignment in Large Language
Models" (LessWrong, 4 September 2024); the annotations are ours, and the rules behind them stand in
emoprobe/study/source_sentences.py.
"""

import sys
from pathlib import Path

import emoprobe as ep
from emoprobe import drawing
from emoprobe.study.sentences import compare_sentences

STRENGTH = 1.0  # λ


def main(name: str = "bundled", probes: str | None = None) -> None:
    """Compare, print what shows, and write the figure."""
    model = ep.load_model(name)
    dimensions = ["valence", "arousal", "relevance"]
    probed = ep.Valuation.from_probes(ep.load_probes(probes), dimensions) if probes else None
    comparison = compare_sentences(model, probed, strength=STRENGTH)
    result = comparison.result()

    claims = comparison.claims[comparison.claims["strength"] == STRENGTH].drop(columns="strength")
    print(f"{result.question}\n{result.method}\n\nPercent, on {model.name}:\n")
    print(claims.round(2).to_string(index=False))
    print("\nDoes a claim show at other λ?\n")
    print(
        comparison.claims.pivot(index=["valuation", "claim"], columns="strength", values="shows").to_string()
    )
    print("\nRanks gained by groups of words:\n")
    print(comparison.groups.round(2).to_string(index=False))
    print(f"\n{result.verdict}")

    figure = Path("two_sentences.png")
    assert result.figure is not None
    figure.write_bytes(drawing.png(result.figure))
    print(f"\nThe heat maps are in {figure}.")


if __name__ == "__main__":
    main(*sys.argv[1:3])
