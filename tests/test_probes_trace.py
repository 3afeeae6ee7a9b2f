"""Traces: the numbers of each kind, their independence of padding, and what is shown of them."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from typing import Any

import numpy as np
import pytest
import torch
from small_probes import model, probes, texts

from emoprobe.errors import InputError
from emoprobe.probes import Trace, fit_probes, trace
from emoprobe.probes.readout import UNITS, random_probes
from emoprobe.probes.reference_corpus import Reference, reference
from emoprobe.probes.tokens import sampled

TEXTS = ("the sun came up", "we were so glad that the music <b>was</b> not so dark & sad\nafter all")


@pytest.mark.parametrize("kind", list(UNITS))
def test_each_kind_is_what_it_says(kind: str) -> None:
    found = trace(model(), probes(), TEXTS[1], layers=[1, 2], kind=kind)
    assert set(found.frame.kind) == {kind}
    with torch.no_grad():
        streams = model().streams(model().tokenize(TEXTS[1]), [1, 2])[:, 0].double().numpy()
    for row, layer in enumerate((1, 2)):
        place, x = probes().layer_index(layer), streams[row]
        mean = probes().reference_mean[place].double().numpy()
        for column, concept in enumerate(probes().concepts):
            u = probes().directions[place, column].double().numpy()
            scale, offset, spread = (
                float(part[place, column])
                for part in (probes().scale, probes().offset, probes().reference_std)
            )
            expected = {
                "read_out": scale * (x @ u) + offset,
                "dot": x @ u,
                "cosine": x @ u / np.linalg.norm(x, axis=1) / np.linalg.norm(u),
                "centred_cosine": (x - mean) @ u / np.linalg.norm(x - mean, axis=1) / np.linalg.norm(u),
                "z": ((x @ u) - mean @ u) / spread,
            }[kind]
            part = found.frame[(found.frame.layer == layer) & (found.frame.concept == concept)]
            assert np.allclose(part.value, expected, rtol=1e-4, atol=1e-5)


def test_a_probe_without_a_direction_reads_the_same_everywhere() -> None:
    silent = replace(
        probes(),
        directions=torch.zeros_like(probes().directions),
        scale=torch.zeros_like(probes().scale),
        reference_std=torch.zeros_like(probes().reference_std),
    )
    for kind in UNITS:
        found = trace(model(), silent, TEXTS[0], concepts=["high", "high"], layers=[1], kind=kind)
        expected = float(probes().offset[1, 0]) if kind == "read_out" else 0.0
        assert np.allclose(found.frame.value, expected) and len(found.frame) == found.frame.position.nunique()
        assert "nan" not in found._repr_html_()


def test_the_tokens_of_the_corpus_have_mean_0_and_spread_1_in_z() -> None:
    frame = trace(model(), probes(), texts(), concepts=["planted", "high"], layers=[2], kind="z").frame
    counted = frame[frame.position >= 1]
    assert np.allclose(counted.groupby("concept").value.mean(), 0, atol=1e-3)
    drawn = set(sampled(texts(), 0))  # whose tokens the spread is that of
    some = counted[counted.text.map(lambda row: texts()[row] in drawn)]
    assert np.allclose(some.groupby("concept").value.std(ddof=0), 1, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_text_reads_the_same_alone_and_beside_a_longer_one(batch_size: int) -> None:
    together = trace(model(), probes(), TEXTS, batch_size=batch_size).frame
    for number, text in enumerate(TEXTS):
        alone = trace(model(), probes(), text).frame
        part = together[together.text == number].reset_index(drop=True)
        assert np.allclose(part.value, alone.value, atol=1e-8)
        columns = ["position", "token", "start", "end", "concept", "layer"]
        assert part[columns].equals(alone[columns])


def test_tokens_lie_where_they_say_in_their_text() -> None:
    texts = TEXTS[::-1]  # the longer one first, though it is read last
    frame = trace(model(), probes(), texts, concepts="high").frame
    for row in frame.itertuples():
        assert texts[row.text][row.start : row.end] == row.token
    assert ["".join(part.token) for _, part in frame.groupby("text")] == list(texts)
    assert list(dict.fromkeys(frame.text)) == [0, 1]


def test_each_concept_is_read_at_its_best_layer_unless_told_otherwise() -> None:
    frame = trace(model(), probes(), TEXTS[0]).frame
    assert {c: set(part.layer) for c, part in frame.groupby("concept")} == {
        concept: {probes().best_layer(concept)} for concept in probes().concepts
    }
    assert set(trace(model(), probes(), TEXTS[0], layers="all").frame.layer) == {0, 1, 2, 3}
    assert set(trace(model(), probes(), TEXTS[0], layers=0.66).frame.layer) == {2}


def test_a_tokenizer_without_offsets_still_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    padded = model().padded
    monkeypatch.setattr(model(), "padded", lambda *given: replace(padded(*given), offsets=None))
    found = trace(model(), probes(), TEXTS[1], concepts="high")
    assert set(found.frame.start) == set(found.frame.end) == {-1}
    assert "<b>was" not in found._repr_html_()


def test_what_cannot_be_traced_is_refused() -> None:
    for options, message in (
        ({"kind": "sum"}, 'kind="sum" is not understood: give one of read_out, dot'),
        ({"concepts": ["joy"]}, "no probe for 'joy'"),
        ({"layers": 9}, "layer 9 does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            trace(model(), probes(), TEXTS[0], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is empty"):
        trace(model(), probes(), ["fine", " "])
    with pytest.raises(InputError, match="no text was given"):
        trace(model(), probes(), [])


# Showing -------------------------------------------------------------------------------------------------------------


def shown(found: Trace) -> list[str]:
    """Return the rows of a trace's HTML as plain text, without their titles."""
    rows = re.findall(
        r'<div style="white-space:pre-wrap"><b>.*?</b>  (.*?)</div>', found._repr_html_(), re.DOTALL
    )
    return [unescape(re.sub(r"<[^>]*>", "", row)) for row in rows]


def test_html_shows_each_text_as_it_is_once_for_each_concept() -> None:
    found = trace(model(), probes(), TEXTS, concepts=["high", "planted"])
    assert shown(found) == [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]


def test_html_is_escaped_and_needs_nothing_from_elsewhere() -> None:
    script = "<script>alert(1)</script> \"quoted\" 'too' & so on"
    named = replace(probes(), concepts=(script, *probes().concepts[1:]))
    html = trace(model(), named, script, concepts=[script], layers=[1])._repr_html_()
    assert set(re.findall(r"<(\w+)", html)) == {"div", "b", "span", "p", "small"}
    assert "src=" not in html and "href" not in html and "url(" not in html
    assert unescape(re.sub(r"<[^>]*>", "", html)).startswith(f"{script}, layer 1  {script}")


def test_what_lies_between_tokens_is_shown_and_escaped_too() -> None:
    """Some tokenizers leave characters out of every token."""
    found = trace(model(), probes(), "a<b>c<i>", concepts="high", layers=[1])
    frame = found.frame.iloc[:2].assign(token=["a", "c"], start=[0, 4], end=[1, 5])
    html = replace(found, frame=frame)._repr_html_()
    assert "<b>c" not in html and "<i>" not in html
    assert shown(replace(found, frame=frame)) == ["a<b>c<i>"]


def test_characters_of_several_tokens_and_special_tokens_are_shown_once() -> None:
    found = trace(model(), probes(), "sad 😀 né", concepts="high")
    assert len(found.frame) > len("sad 😀 né")  # a byte-level tokenizer cuts characters into bytes
    (row,) = shown(found)
    assert row.replace("·", "") == "sad 😀 né"


def test_colours_are_away_from_the_corpus_mean_and_do_not_follow_the_first_token() -> None:
    found = trace(model(), probes(), TEXTS[1], concepts="planted", layers=[2])
    centre = found.centres["planted", 2]
    column = probes().concept_index("planted")
    assert centre == pytest.approx(float(probes().read_out(probes().reference_mean[2], 2)[column]), abs=1e-5)
    coloured = found.coloured()
    assert (np.sign(coloured.colour) == np.sign(coloured.value - centre)).all()
    assert coloured.colour.abs().max() == 1
    loud = found.frame.copy()
    loud.loc[0, "value"] = 1e6
    after = replace(found, frame=loud).coloured()
    assert np.allclose(after.colour[1:], coloured.colour[1:]) and after.colour[0] == 1
    assert trace(model(), probes(), TEXTS[1], concepts="planted", kind="z").centres["planted", 2] == 0


def test_figures_take_any_token(recwarn: Any) -> None:
    found = trace(model(), probes(), ["$x^2$ \\frac{ _ \n & <b>", TEXTS[0]], concepts=["high", "low"])
    for number in range(2):
        figure = found.plot(number)
        figure.canvas.draw()
        assert len(figure.axes[0].get_yticklabels()) == 2
    with pytest.raises(InputError, match="text 2 is not in this trace"):
        found.plot(2)
    assert repr(found).startswith("<Trace of 2 texts")


# Against a corpus of one's own ---------------------------------------------------------------------------------------


OTHER = [f"they were {word} and {'so ' * (number % 5)}dark" for number, word in enumerate(texts(23, seed=3))]


def token_vectors(layer: int) -> Any:
    """Return the residual vectors of all tokens of OTHER but the first of each text, one text at a time, float64."""
    with torch.no_grad():
        streams = [model().streams(model().tokenize(text), [layer])[0, 0, 1:] for text in OTHER]
    return torch.cat(streams).double().numpy()


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_reference_is_mean_and_spread_over_the_tokens_of_its_texts(batch_size: int) -> None:
    read: list[str] = []

    def stream() -> Iterator[str]:
        for text in OTHER:
            read.append(text)
            yield text

    found = reference(model(), probes(), stream(), batch_size=batch_size)
    assert read == OTHER and found.texts == len(OTHER)
    for row, layer in enumerate(probes().layers):
        x = token_vectors(layer)
        assert found.tokens == len(x)
        assert np.allclose(found.mean[row], x.mean(0), atol=1e-9)
        assert np.allclose(
            found.std[row], (x @ probes().directions[row].double().numpy().T).std(0), atol=1e-9
        )


def test_traces_are_about_the_reference_that_they_name() -> None:
    about = reference(model(), probes(), OTHER, name="the <other> texts")
    x = token_vectors(2)
    column = probes().concept_index("planted")
    u = probes().directions[2, column].double().numpy()
    with torch.no_grad():
        new = model().streams(model().tokenize(TEXTS[1]), [2])[0, 0].double().numpy()
    expected = {
        "z": (new @ u - (x @ u).mean()) / (x @ u).std(),
        "centred_cosine": (new - x.mean(0)) @ u / np.linalg.norm(new - x.mean(0), axis=1) / np.linalg.norm(u),
    }
    for kind, values in expected.items():
        options: Any = {"concepts": "planted", "layers": 2, "kind": kind}
        found = trace(model(), probes(), TEXTS[1], reference=about, **options)
        own = trace(model(), probes(), TEXTS[1], **options)
        assert np.allclose(found.frame.value, values, rtol=1e-4, atol=1e-5)
        assert not np.allclose(found.frame.value, own.frame.value, atol=1e-2)
        assert "the <other> texts" in repr(found) and "the &lt;other&gt; texts" in found._repr_html_()
        assert "of the probes' corpus" in repr(own) and "other" not in repr(own)
    dot = trace(model(), probes(), TEXTS[1], reference=about, concepts="planted", layers=2, kind="dot")
    assert dot.centres["planted", 2] == pytest.approx((x @ u).mean(), abs=1e-5)
    assert "below the mean token of the &lt;other&gt; texts" in dot._repr_html_()


def test_references_add_up_in_any_order() -> None:
    whole = reference(model(), probes(), OTHER)
    parts = [reference(model(), probes(), part) for part in (OTHER[:3], OTHER[3:4], OTHER[4:])]
    for one, two, three in (parts, parts[::-1]):
        joined = one + two + three
        assert (joined.tokens, joined.texts) == (whole.tokens, whole.texts)
        assert torch.allclose(joined.mean, whole.mean, rtol=0, atol=1e-10)
        assert torch.allclose(joined.std, whole.std, rtol=0, atol=1e-10)


def test_a_reference_of_other_probes_is_refused() -> None:
    from small_probes import planted

    about = reference(model(), probes(), OTHER[:4])
    options: Any = {"permutations": 0, "bootstrap": 0, "progress": False}
    fewer = fit_probes(model(), planted()[0], concepts=["planted"], **options)
    turned = replace(probes(), directions=probes().directions.flip(-1))
    for others in (fewer, turned):
        with pytest.raises(InputError, match="gathered along other probes"):
            trace(model(), others, TEXTS[0], reference=about)
    with pytest.raises(InputError, match="do not add up"):
        about + reference(model(), fewer, OTHER[:4])
    with pytest.raises(InputError, match="no text was given"):
        reference(model(), probes(), [])
    assert isinstance(about, Reference) and "4 texts" in repr(about)


def test_smoothing_is_a_mean_over_neighbours_and_says_so() -> None:
    found = trace(model(), probes(), TEXTS, concepts=["high", "planted"], layers=[2])
    smooth = found.smoothed(3)
    assert "mean of 3 tokens" in repr(smooth) and "mean of 3 tokens" in smooth._repr_html_()
    assert "mean of" not in repr(found)
    for (number, concept), part in smooth.frame.groupby(["text", "concept"]):
        before = found.frame[(found.frame.text == number) & (found.frame.concept == concept)].value.to_numpy()
        values = [before[0]]  # the first token, an attention sink, stays by itself
        for place in range(1, len(before)):
            values.append(before[max(1, place - 1) : place + 2].mean())
        assert np.allclose(part.value, values)
    assert smooth.frame.drop(columns="value").equals(found.frame.drop(columns="value"))
    assert np.allclose(found.smoothed(1).frame.value, found.frame.value)
    for window in (0, 2, -3):
        with pytest.raises(InputError, match="odd number"):
            found.smoothed(window)
    with pytest.raises(InputError, match="a mean of 3 tokens already"):
        smooth.smoothed(3)


def test_random_probes_keep_all_but_where_a_concept_points() -> None:
    turned = random_probes(probes(), "planted", 40, seed=1)
    column = probes().concept_index("planted")
    own = probes().directions[:, column].double()
    assert turned.directions.shape == (4, 40, 32) and len(set(turned.concepts)) == 40
    for number in range(40):
        rows = turned.directions[:, number].double()
        assert torch.allclose(rows @ rows.T, own @ own.T, atol=1e-5)
    assert torch.equal(turned.scale, probes().scale[:, [column]].expand(-1, 40))
    cosines = turned.directions[2].double() @ own[2]
    assert float(cosines.square().mean()) == pytest.approx(1 / 32, rel=0.6) and cosines.abs().max() < 0.8
    other = random_probes(probes(), "planted", 40, seed=2)
    assert not torch.isclose(turned.directions, other.directions, atol=1e-3).all(-1).any()
