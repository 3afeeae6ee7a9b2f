"""Look for valence and arousal in the geometry of emotion vectors, beside the controls that it needs.

    python benchmarks/geometry.py [--norms Ratings_Warriner_et_al.csv]

Emotion vectors by the published recipe are made of the ground-truth model on its own texts, and of the bundled model on the
bundled passages; valence and arousal of the 13 emotions are those that the generator draws by: the truth for its own texts,
and this package's choice, no people's ratings, for the passages (`benchmarks/concepts.py` has people's). With `--norms`, the
file of Warriner, Kuperman & Brysbaert 2013 (or another that `load_word_norms` takes), the bundled model's probes of valence and
arousal are set against people's ratings of 2,000 single words too. Writes benchmarks/geometry.json and benchmarks/geometry.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.corpora import Corpus
from emoprobe.corpora.generator import EMOTIONS, generate
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.probes.axes import leading_axes
from emoprobe.probes.circumplex import circumplex
from emoprobe.probes.clusters import clusters
from emoprobe.probes.emotion_vector_recipe import EmotionVectors, emotion_vectors
from emoprobe.probes.similarity import layer_similarity, model_similarity
from emoprobe.probes.tasks import LABELS
from emoprobe.probes.word_norms import against_word_norms
from emoprobe.study.concepts.arrangement import planted

HERE = Path(__file__).resolve().parent
START = 5
"""Texts have about 45 tokens: the paper's 50 would leave a single one of each."""
SHUFFLES = 99
TEXTS = 2600
PLANTED = (0.5, 1.0)
"""Strengths at which valence and arousal are added to the vectors, to see whether they would be found."""
NORMS = {name: {"valence": place.valence, "arousal": place.arousal} for name, place in EMOTIONS.items()}
QUADRANTS = {
    name: f"{'pleasant' if place.valence > 0 else 'not pleasant'}, {'roused' if place.arousal > 0.5 else 'not roused'}"
    for name, place in EMOTIONS.items()
}


def neutral_texts(count: int) -> list[str]:
    """Return texts in which nobody feels anything, of other draws than the corpus."""
    return [text.text for text in generate(count, 1, forms=("first", "third"), emotions=["neutral"])]


def vectors(model: LiveModel, corpus: Corpus, neutral: list[str]) -> EmotionVectors:
    """Make emotion vectors with enough sets of shuffled labels for a p value of 0.01."""
    return emotion_vectors(model, corpus, neutral, start=START, shuffles=SHUFFLES, progress=False)


def accuracy(probes: ProbeSet) -> str:
    """Say how often the nearest vector is right at the best layer."""
    scores = probes.scores[probes.scores.concept == LABELS]
    best = scores.loc[scores.value.idxmax()]
    return (
        f"{best.value:.2f} [{best.low:.2f}, {best.high:.2f}] at layer {best.layer} (shuffled {best.shuffled:.2f}, embedding "
        f"{best.layer0:.2f}, bag of words {best.bag_of_words:.2f})"
    )


def examined(found: EmotionVectors) -> dict[str, Any]:
    """Return in words, and in numbers, where valence and arousal lie."""
    results: dict[str, Any] = {}
    for version in ("raw", "denoised"):
        probes = getattr(found, version)
        axes = leading_axes(probes, NORMS, found.shuffled[version])
        layer = probes.best_layer()
        geometry = probes.geometry(layer, NORMS)
        plane = circumplex(geometry, NORMS)
        results[version] = {
            "accuracy": accuracy(probes),
            "axes": axes.report(),
            "had they been there": " ".join(
                f"Added with {strength:g} of their length: "
                + leading_axes(planted(probes, NORMS, strength), NORMS, found.shuffled[version]).report()
                for strength in PLANTED
            ),
            "first components": (
                f"{', '.join(f'{share:.0%}' for share in geometry.shares[:3])} of unit vectors' variance at layer {layer} "
                f"({axes.shares.set_index('layer').shuffled_PC1[layer]:.0%} on the first with shuffled labels); r of PC1 with "
                f"the vectors' lengths {geometry.length_r.iloc[0]:.2f}"
            ),
            "plane of the first two": f"fit to both {plane.fit:.2f} (p = {plane.p:.3g}) at layer {layer}",
            "quadrants": clusters(probes, layer, QUADRANTS, k=4, shuffled=found.shuffled[version]).report(),
            "layers": layer_similarity(probes, shuffled=found.shuffled[version]).report(),
            "table": json.loads(axes.frame.to_json(orient="records")),
        }
    kept = found.frame.groupby("layer")[["k", "kept", "kept_by_chance"]].mean()
    results["denoising"] = "; ".join(
        f"layer {layer}: {row.k:.0f} components, {row.kept:.2f} of the norm kept ({row.kept_by_chance:.2f} by chance)"
        for layer, row in kept.iterrows()
    )
    return results


def page(results: Mapping[str, Mapping[str, Any]], other: Mapping[str, str]) -> str:
    """Write the results down for people."""
    lines = [
        "# Where valence and arousal lie among emotion vectors",
        "",
        f"`python benchmarks/geometry.py --norms FILE`, seed 0. Vectors from token {START} on; 13 emotions, whose valence and",
        f"arousal are the generator's; {SHUFFLES} sets of shuffled labels. An axis is one of the first five components; p",
        "allows for the search through components and layers.",
    ]
    for name, found in results.items():
        lines += ["", f"## {name}", "", f"Denoising: {found['denoising']}."]
        for version in ("raw", "denoised"):
            lines += ["", f"### {version.capitalize()} vectors", ""]
            lines += [f"- **{key}**: {text}" for key, text in found[version].items() if key != "table"]
    lines += ["", "## Between models, and single words", ""]
    lines += [f"- **{key}**: {text}" for key, text in other.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norms", help="file of human word norms")
    norms = parser.parse_args().norms
    truth, bundled = ep.load_model("ground-truth"), ep.load_model("bundled")
    passages = ep.load_corpus("passages")
    of_truth = vectors(truth, ep.load_corpus("ground-truth", limit=TEXTS), neutral_texts(400))
    plain = [
        text
        for text, labels in zip(passages.texts, passages.data["labels"][:], strict=True)
        if labels == ["neutral"]
    ]
    of_bundled = vectors(bundled, passages, plain + neutral_texts(200))
    results = {
        "Ground-truth model, its own texts": examined(of_truth),
        "Bundled model, passages": examined(of_bundled),
    }
    other = {"both models": model_similarity(of_truth.raw, of_bundled.raw).report()}
    if norms:
        probes = ep.fit_probes(bundled, passages, concepts=["valence", "arousal"], progress=False)
        other["single words"] = against_word_norms(bundled, probes, norms).report()
    write_bytes(HERE / "geometry.json", (json.dumps({**results, "other": other}, indent=1) + "\n").encode())
    write_bytes(HERE / "geometry.md", page(results, other).encode())
    print(page(results, other))


if __name__ == "__main__":
    main()
