"""The example notebooks run as they stand, show what they say they show, and hold nothing of the machine they ran on.

What is asserted of their results is asked of their own variables, in a cell behind their last.
"""

import re
from pathlib import Path

import nbformat
import pytest
from outputs import alike

from examples.run import METADATA, NOTEBOOKS, executed, tidied

CHECKS = {
    "1_fit_probes": """
assert set(best.index) == set(CONCEPTS) and best[["layer0", "bag_of_words", "control_task"]].notna().all(axis=None)
assert (best.low < best.value).all() and (best.value < best.high).all()
assert (best.value > best.shuffled_best_high).all()  # readable at all
assert best.groups.eq(len(set(corpus.groups))).all() and len(corpus) == TEXTS
read = "".join(trace.frame[trace.frame.concept == "fear"].token)
assert read.replace(" ", "").endswith(TEXT.replace(" ", ""))
assert not verdict.empty and len(kept) == len(probes) and (kept.directions == probes.directions).all()
assert page.startswith("<!doctype html>") and "<script" not in page
""",
    "2_steering": """
words = effects[effects.measure.str.startswith("words")].set_index("strength")
assert (words.change.diff().dropna() > 0).all()  # the dose is answered
outside = (effects.change < effects.random_low) | (effects.change > effects.random_high)
assert (effects.beyond_random == outside).all() and (words.random_low < words.random_high).all()
assert words.unrelated.notna().all() and specific.index["chance_low"] < 0 < specific.index["chance_high"]
cost = effects[effects.measure == "nll"].set_index("strength").change
assert cost[0.2] > 0 and cost[-0.2] > 0
raw = sweep.raw
assert raw[raw.condition == "random"].seed.nunique() == RANDOM and specific.changes.shape[0] == len(WORDS) + RANDOM
assert texts[0] == again and texts[0.4] != texts[0] and not model.interventions
""",
    "3_three_backends": """
assert list(logits) == ["transformers", "transformer_lens", "nnsight"]
for name, row in agreement.iterrows():
    assert row["moves logits by up to"] > 0.1 and row["differs from by hand"] < 1e-3, name
    assert row["after, as before"] is True, name
assert agreement.writes.nunique() == 1
""",
    "4_probed_and_learned": """
table = comparison.frame.set_index(["quantity", "dimension"])
cosine = table.loc["row cosine"]
assert (cosine.value > cosine.control_high).all() and len(cosine) == len(DIMENSIONS)
conditions = set(comparison.nll.condition)
assert {"untouched", "probed", "learned", "learned from random", *(f"random {k}" for k in range(CONTROLS))} == conditions
assert (learned.weight != probed.weight).any() and learned.strength.abs().max() > 0
assert comparison.nll.set_index("condition").delta["untouched"] == 0
""",
    "5_emotion_concepts": """
assert [result.name for result in results] == ["axes", "intensity", "negation"]
for result in results:
    assert result.passed and result.controls and result.published and result.sign in (-1, 0, 1), result
assert len(vectors.shuffled["denoised"]) == SHUFFLES and (vectors.frame.kept <= 1 + 1e-6).all()
""",
    "6_two_sentences": """
assert comparison.untouched and set(claims.valuation) == {"annotated", "unmapped"} and len(claims) == 8
assert (claims.control_low <= claims.control_high).all() and comparison.controls == CONTROLS
assert result.passed and (comparison.groups.shape[0] > 0)
assert moved["annotated"] > 0 and moved["annotations shuffled"] > 0 and moved["none"] < 1e-6
""",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_results_are_what_they_should_be(path: Path) -> None:
    book = executed(path, CHECKS[path.stem])
    kept = nbformat.read(path, as_version=4)
    shown, again = said(kept), said(tidied(book))[:-1]
    assert [[kinds for kinds, _ in cell] for cell in again] == [
        [kinds for kinds, _ in cell] for cell in shown
    ]
    for cell, other in zip(shown, again, strict=True):
        for (_, before), (_, now) in zip(cell, other, strict=True):
            assert alike(before, now), (
                f"kept: {before}\nprinted: {now}"
            )  # what is kept was made by these cells


def said(book: nbformat.NotebookNode) -> list[list[tuple[list[str], str]]]:
    """Return for each cell what kinds of outputs there are, and what each says in words."""
    return [
        [
            (
                sorted(output.get("data", {})),
                output.get("data", output).get("text/plain", output.get("text", "")),
            )
            for output in cell.get("outputs", [])
        ]
        for cell in book.cells
    ]


def test_there_is_a_check_for_each_notebook() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(CHECKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kept_notebook_is_small_and_holds_nothing_of_the_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    assert len(text.encode()) < 200_000
    assert book.metadata == METADATA and all(not cell.metadata for cell in book.cells)
    assert not re.search(r"/(home|root|work|tmp|usr|opt|Users)/|site-packages|[A-Z]:\\\\", text)
    assert "@@" not in text and "<script" not in text
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and all(
        output.output_type in ("execute_result", "display_data", "stream") for output in outputs
    )
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    assert code[0].source.startswith("MODEL = ")  # for any model
    assert book.cells[0].cell_type == "markdown" and "**Question.**" in book.cells[0].source
