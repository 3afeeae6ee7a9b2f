"""Emotion vectors against the recipe done by hand, token by token and in float64, on texts read one at a time."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_probes import PLANTED_LAYER, model, planted, texts
from tiny import tiny_model

import emoprobe as ep
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes.emotion_vector_recipe import EmotionVectors, emotion_vectors, nearest_vectors
from emoprobe.probes.tasks import plan
from emoprobe.probes.tokens import sampled
from emoprobe.probes.validation import shuffle

START = 14  # more tokens than the shortest texts have
QUICK: dict[str, Any] = {"start": START, "folds": 0, "shuffles": 2, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:.*stories have no more")


def neutral() -> list[str]:
    return texts(60, seed=5)


@cache
def streams(written: tuple[str, ...]) -> list[torch.Tensor]:
    """Return each text's tokens that count, (layers, tokens, d_model), the text read alone."""
    found = []
    for text in written:
        batch = model().tokenize([text])
        with torch.no_grad():
            stream = model().streams(batch, range(4))[:, 0].double()
        found.append(stream[:, START:] if stream.shape[1] > START else stream[:, -1:])
    return found


def by_hand(centre: str = "classes") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the vectors (layers, labels, d_model) and what was taken from the means (layers, d_model)."""
    corpus = planted()[0]
    means = np.stack([stream.mean(1).numpy() for stream in streams(tuple(corpus.texts))])
    carried = corpus.label_matrix()
    classes = np.stack([means[carried[:, column]].mean(0) for column in range(3)], axis=1)
    middle = classes.mean(1) if centre == "classes" else means.mean(0)
    return classes - middle[:, None], middle


def components(over: str) -> np.ndarray[Any, Any]:
    """Return the neutral texts' centred rows at each layer, whose right singular vectors are the components."""
    parts = streams(tuple(neutral()))
    rows = torch.cat(parts, 1) if over == "tokens" else torch.stack([part.mean(1) for part in parts], 1)
    centred: np.ndarray[Any, Any] = (rows - rows.mean(1, keepdim=True)).numpy()
    return centred


@cache
def vectors(**options: Any) -> EmotionVectors:
    return emotion_vectors(model(), planted()[0], neutral(), **{**QUICK, **options})


def lengths(left: Any) -> Any:
    return np.linalg.norm(left, axis=-1)


@pytest.mark.parametrize("centre", ["classes", "texts"])
def test_raw_vectors_are_means_of_means_of_tokens(centre: Any) -> None:
    found, (expected, middle) = vectors(centre=centre).raw, by_hand(centre)
    assert np.allclose(found.directions * found.scale[..., None], expected, atol=1e-5)
    assert np.allclose(lengths(found.directions), 1, atol=1e-6)
    stream = streams(tuple(planted()[0].texts))[3][2]
    read = np.einsum("td,cd->tc", stream.numpy() - middle[2], expected[2])
    assert np.allclose(found.read_out(stream, 2), read, atol=1e-3 * np.abs(read).max())
    unit = vectors(centre=centre, norm="unit").raw
    assert np.allclose(unit.read_out(stream, 2), read / lengths(expected[2]), atol=1e-4)


def test_the_two_centres_differ_where_emotions_have_unequally_many_texts() -> None:
    (of_classes, _), (of_texts, _) = by_hand("classes"), by_hand("texts")
    assert np.abs(of_classes - of_texts).max() > 1e-2


@pytest.mark.parametrize("over", ["texts", "tokens"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_neutral_components_up_to_the_share_are_projected_out(over: Any, share: float) -> None:
    found, (expected, _) = vectors(components_over=over, share=share), by_hand()
    for layer, rows in enumerate(components(over)):
        _, singular, right = np.linalg.svd(rows, full_matrices=False)
        held = (singular**2).cumsum() / (singular**2).sum()
        k = 0 if share == 0 else int((held < share).sum()) + 1
        assert found.raw.metadata["recipe"]["k"][layer] == k
        left = expected[layer] - expected[layer] @ right[:k].T @ right[:k]
        got = found.denoised
        assert np.allclose(got.directions[layer] * got.scale[layer, :, None], left, atol=1e-5)
        frame = found.frame[found.frame.layer == layer]
        assert np.allclose(frame.kept, lengths(left) / lengths(expected[layer]), atol=1e-6)
        cosines = (left * expected[layer]).sum(-1) / lengths(left) / lengths(expected[layer])
        assert np.allclose(frame.kept, cosines, atol=1e-6)  # as the frame's description says
        assert np.allclose(frame.kept_by_chance, np.sqrt(1 - k / 32)) and (frame.k == k).all()
        assert np.allclose(frame.norm, lengths(expected[layer]), atol=1e-5)
    assert (share == 0) == np.allclose(found.frame.kept, 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_vectors_do_not_depend_on_batches_or_padding(side: str, batch_size: int) -> None:
    read = tiny_model("gpt2")
    read.tokenizer.padding_side = side
    found = emotion_vectors(read, planted()[0], neutral(), **QUICK, batch_size=batch_size)
    for version in ("raw", "denoised"):
        one, other = getattr(found, version), getattr(vectors(), version)
        for name in ("directions", "scale", "offset", "reference_mean", "reference_std", "residual_norms"):
            assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)
        assert torch.allclose(found.shuffled[version], vectors().shuffled[version], atol=1e-5)


def test_texts_shorter_than_the_start_are_counted_and_warned_of() -> None:
    corpus = planted()[0]
    lengths = np.array([len(ids) for ids in model().tokenizer(corpus.texts)["input_ids"]])
    shorter = int((lengths <= START).sum())
    assert 24 < shorter < 240
    with pytest.warns(UserWarning, match=f"{shorter} of 240 stories have no more than start={START} tokens"):
        found = emotion_vectors(model(), corpus, neutral(), **QUICK)
    assert found.raw.metadata["recipe"]["shorter"] == shorter and f"({shorter} shorter)" in repr(found)
    neutrals = [len(ids) for ids in model().tokenizer(neutral())["input_ids"]]
    assert found.raw.metadata["recipe"]["neutral_shorter"] == sum(length <= START for length in neutrals)


def test_statistics_are_those_of_the_tokens_that_count() -> None:
    tokens = torch.cat(streams(tuple(planted()[0].texts)), 1)
    drawn = torch.cat(streams(tuple(sampled(planted()[0].texts, 0))), 1)
    for found in (vectors().raw, vectors().denoised):
        assert torch.allclose(found.reference_mean.double(), tokens.mean(1), atol=1e-4)
        assert torch.allclose(found.residual_norms.double(), tokens.norm(dim=-1).mean(1), rtol=1e-4)
        along = torch.einsum("ltd,lcd->ltc", drawn, found.directions.double())
        assert torch.allclose(found.reference_std.double(), along.std(1, correction=0), rtol=1e-3)


def test_shuffled_vectors_are_of_the_same_stories_with_labels_handed_on() -> None:
    corpus, found = planted()[0], vectors(shuffles=2)
    means = np.stack([stream.mean(1).numpy() for stream in streams(tuple(corpus.texts))])
    group, order = np.unique(corpus.groups, return_inverse=True)[1], np.random.default_rng(0)
    for part in found.shuffled["raw"]:
        carried = corpus.label_matrix()[shuffle(group, order)]
        assert (carried != corpus.label_matrix()).any(1).mean() > 0.3
        classes = np.stack([means[carried[:, column]].mean(0) for column in range(3)], axis=1)
        assert np.allclose(part, classes - classes.mean(1, keepdims=True), atol=1e-5)
    k = found.raw.metadata["recipe"]["k"][2]
    basis = np.linalg.svd(components("texts")[2], full_matrices=False)[2][:k]
    assert np.abs(found.shuffled["denoised"][:, 2].numpy() @ basis.T).max() < 1e-5
    assert np.abs(found.shuffled["raw"][:, 2].numpy() @ basis.T).max() > 1e-2


def test_scores_are_those_of_nearest_vectors_on_held_out_groups() -> None:
    found = vectors(start=1, folds=4, permutations=6, bootstrap=60)
    corpus, scores = planted()[0], found.raw.scores
    assert found.raw.best_layer() >= PLANTED_LAYER and "accuracy" in found.denoised.report()
    assert found.denoised.scores.layer.unique().tolist() == [0, 1, 2, 3]
    at = scores[scores.concept == "(labels)"].set_index("layer")
    assert at.value[2] > at.shuffled_best_high[2] and at.value[2] > at.chance[2] + 0.1
    assert np.allclose(at.layer0, at.value[0])
    # Accuracy at one layer, by hand: cosines with vectors of the other folds, about their mean.
    (task,) = (task for task in plan(corpus, None, 4, 0) if task.kind == "label")
    pooled = model().capture(corpus.texts, [2])[task.rows, 0].double().numpy()
    basis = np.linalg.svd(neutral_means(), full_matrices=False)[2][: found.raw.metadata["recipe"]["k"][2]]
    for version, texts_ in (("raw", pooled), ("denoised", pooled - pooled @ basis.T @ basis)):
        right = 0
        for fold in range(4):
            train, test = task.fold != fold, task.fold == fold
            classes = np.stack([texts_[train & (column > 0)].mean(0) for column in task.targets.T])
            own, away = classes - classes.mean(0), texts_[test] - classes.mean(0)
            cosines = away @ own.T / lengths(away)[:, None] / lengths(own)
            right += int((cosines.argmax(1) == task.targets[test].argmax(1)).sum())
        scores = getattr(found, version).scores
        value = scores[(scores.concept == "(labels)") & (scores.layer == 2)].value.item()
        assert value == pytest.approx(right / len(task.rows))


def neutral_means() -> np.ndarray[Any, Any]:
    means = model().capture(neutral(), [2])[:, 0].double().numpy()
    centred: np.ndarray[Any, Any] = means - means.mean(0)
    return centred


def test_without_scores_the_layer_is_at_two_thirds_of_the_depth() -> None:
    assert vectors().raw.scores.empty and vectors().raw.best_layer() == 2
    assert vectors(layers=0.33).denoised.best_layer() == 1
    assert "0 folds" in vectors().raw.report() and "ProbeSet" in vectors().raw._repr_html_()


def test_nearest_vectors_never_say_an_emotion_without_texts() -> None:
    features = np.random.default_rng(0).normal(size=(30, 5))
    carried = np.eye(3)[np.arange(30) % 2]
    read = nearest_vectors()(features, carried, np.arange(30))
    assert set(read(features).argmax(1)) == {0, 1} and np.isneginf(read(features)[:, 2]).all()


def test_each_set_does_all_that_probes_do(tmp_path: Any) -> None:
    found = vectors(folds=3, permutations=0, bootstrap=0)
    for version in ("raw", "denoised"):
        probes = getattr(found, version)
        again = ep.load_probes(probes.save(tmp_path / "vectors.safetensors"))
        assert again.metadata["recipe"] == probes.metadata["recipe"]
        assert again.metadata["recipe"]["vectors"] == version
        assert again.directions.equal(probes.directions) and again.scores.equals(probes.scores)
        traced = ep.trace(model(), again, "the sun was dark", concepts=["high"], layers=[2]).frame
        assert len(traced) and np.isfinite(traced.value).all()
        lens = again.logit_lens(model(), 0.66, top=3)
        assert set(lens.concept) == {"high", "low", "middle"}
        before = model().logits("the sun")
        with ep.steer(model(), again["high"], strength=0.5, layers=[2]):
            assert not torch.allclose(model().logits("the sun"), before)
        assert again.geometry(2).cosines.shape == (3, 3)
    recipe = found.raw.metadata["recipe"]
    counts = planted()[0].label_matrix().sum(0)
    assert recipe["texts"] == dict(zip(["high", "low", "middle"], counts.tolist(), strict=True))
    assert recipe["neutral_texts"] == 60 and recipe["centre"] == "classes" and recipe["share"] == 0.5
    assert len(recipe["neutral_fingerprint"]) == 32 and recipe["neutral"] == "neutral texts"


def test_labels_without_texts_and_texts_without_labels_are_left_out() -> None:
    corpus = planted()[0]
    frame = {name: corpus.data[name][:] for name in ("text", "labels", "group")}
    frame["labels"] = [[] if labels == ["middle"] else labels for labels in frame["labels"]]
    some = Corpus.from_columns(frame, name="some", labels=["high", "low", "nobody"])
    found = emotion_vectors(model(), some, neutral(), **QUICK)
    assert found.raw.concepts == ("high", "low") and found.raw.metadata["texts"] < 240
    both = found.raw.directions
    assert torch.allclose(both[:, 0], -both[:, 1], atol=1e-5)  # of two, each is the other's opposite


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"centre": "median"}, 'centre="median"'),
        ({"components_over": "words"}, 'components_over="words"'),
        ({"norm": "none"}, 'norm="none"'),
        ({"start": -1}, "start=-1"),
        ({"share": 1.5}, "share=1.5"),
        ({"folds": 99}, "40 groups of texts cannot be dealt into 99 folds"),
        ({"neutral": ["one"]}, "two neutral texts or more"),
        ({"corpus": "double"}, "one label a text"),
        ({"corpus": "single"}, "two or more labels"),
    ],
)
def test_what_cannot_be_done_is_said(change: dict[str, Any], complaint: str) -> None:
    options = {**QUICK, **change}
    rows = {
        "text": ["a b", "c d"],
        "labels": [["x"], ["x"] if change.get("corpus") == "single" else ["x", "y"]],
    }
    odd = Corpus.from_columns(rows, name="odd")
    corpus = odd if options.pop("corpus", None) else planted()[0]
    with pytest.raises(InputError, match=complaint):
        emotion_vectors(model(), corpus, options.pop("neutral", None) or neutral(), **options)


def test_a_stream_that_is_not_finite_is_refused() -> None:
    broken = tiny_model("gpt2")
    with torch.no_grad():
        next(broken.underlying.parameters())[:] = torch.nan
    with pytest.raises(InputError, match=r"is not finite for \d+ of \d+ tokens of a batch, first at layer 0"):
        emotion_vectors(broken, planted()[0], neutral(), **QUICK)


def test_the_same_call_gives_the_same_vectors() -> None:
    again = emotion_vectors(model(), planted()[0], neutral(), **QUICK)
    assert again.raw.directions.equal(vectors().raw.directions)
    assert again.shuffled["raw"].equal(vectors().shuffled["raw"])
    other = emotion_vectors(model(), planted()[0], neutral(), **QUICK, seed=1)
    assert other.raw.directions.equal(again.raw.directions) and not other.shuffled["raw"].equal(
        again.shuffled["raw"]
    )
    assert replace(again, frame=again.frame.head(1)).raw is again.raw
