"""Fitting on a small model: what is planted in it is found, and every number kept is what it says it is."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from small_probes import PLANTED_LAYER, model, planted, probes, texts
from tiny import tiny_model

from emoprobe.activations import capture
from emoprobe.corpora import Corpus, load_corpus
from emoprobe.errors import InputError
from emoprobe.models import load_model
from emoprobe.probes import ProbeSet, fit_probes, metrics
from emoprobe.probes.estimators import fit_for
from emoprobe.probes.features import few_threads
from emoprobe.probes.fit import probe_layers
from emoprobe.probes.folds import grouped_folds
from emoprobe.probes.probe_set import COLUMNS
from emoprobe.probes.tasks import Task, plan
from emoprobe.probes.tokens import SPREAD_TEXTS, sampled, token_spread
from emoprobe.probes.validation import out_of_fold

QUICK: dict[str, Any] = {"permutations": 0, "bootstrap": 0, "progress": False}


def score(found: ProbeSet, concept: str, layer: int) -> Any:
    rows = found.scores[(found.scores.concept == concept) & (found.scores.layer == layer)]
    return next(rows.itertuples())


def token_streams(layers: list[int], given: list[str] | None = None) -> torch.Tensor:
    """Return the residual streams of all tokens but the first of each text, text by text: (layers, tokens, d_model)."""
    parts = []
    for text in texts() if given is None else given:
        batch = model().tokenize(text)
        with torch.no_grad():
            parts.append(model().streams(batch, layers)[:, 0, 1:])
    return torch.cat(parts, dim=1)


def test_a_planted_direction_is_found_where_it_was_planted() -> None:
    direction = torch.from_numpy(planted()[1]).float()
    found = probes()
    for concept in ("planted", "halves"):
        assert float(found[concept].at(PLANTED_LAYER) @ direction) > 0.95
        assert float(found[concept].at(0) @ direction) < 0.9
        assert found.best_layer(concept) == PLANTED_LAYER
        assert score(found, concept, PLANTED_LAYER).low > 0.98
    here = score(found, "planted", PLANTED_LAYER)
    assert here.low > max(here.shuffled_high, here.layer0, here.bag_of_words)
    assert here.shuffled_low < 0 < here.shuffled_high
    noise = score(found, "noise", found.best_layer("noise"))
    assert noise.low < 0.15 and abs(noise.shuffled) < 0.2


def test_gains_over_the_controls_are_those_of_the_same_resamples() -> None:
    scores = probes().scores
    layer0 = scores[scores.layer == 0]
    assert (layer0.layer0_gain_low == 0).all() and (layer0.layer0_gain_high == 0).all()
    for control in ("layer0", "bag_of_words"):
        gain, low, high = (
            scores.value - scores[control],
            scores[f"{control}_gain_low"],
            scores[f"{control}_gain_high"],
        )
        assert ((low - 0.02 <= gain) & (gain <= high + 0.02)).all() and (low <= high).all()
    (task,) = plan(planted()[0], ["planted"])
    features = model().capture(texts(), [0, PLANTED_LAYER]).double().numpy()
    predicted = [
        out_of_fold(fit_for("ridge", "dimension"), features[:, place], task.targets, task.group, task.fold)
        for place in (0, 1)
    ]
    weights = metrics.weighting(task.group, task.fold, 100, 0)
    shallow, deep = (metrics.correlation(part, task.targets, weights)[1:, 0] for part in predicted)
    here = score(probes(), "planted", PLANTED_LAYER)
    expected = np.quantile(deep - shallow, [0.025, 0.975])
    assert [here.layer0_gain_low, here.layer0_gain_high] == pytest.approx(expected, abs=1e-6)


def test_the_best_of_many_layers_is_held_to_the_best_of_shuffled_ones() -> None:
    """Noise in twelve layers: its best layer often beats one layer's shuffled range, and seldom that of the best of twelve."""
    generator = np.random.default_rng(0)
    group = np.arange(90) // 3
    naive = corrected = 0
    for seed in range(30):
        targets = generator.normal(size=(90, 1))
        task = Task("dimension", False, ("noise",), np.arange(90), targets, group, grouped_folds(group, 5))
        features = torch.from_numpy(generator.normal(size=(90, 12, 8))).float()
        bar = Progress(disable=True)
        scores = probe_layers(
            task, fit_for("ridge", "dimension"), features, ["text"] * 90, range(12), (0, 2, seed), bar
        ).scores
        best = scores.loc[scores.reset_index(drop=True).value.idxmax() == np.arange(len(scores))].iloc[0]
        naive += best.value > best.shuffled_high
        corrected += best.value > best.shuffled_best_high
    assert corrected <= 4 and naive >= corrected + 4


def test_labels_are_found_and_counted() -> None:
    found = probes()
    accuracy = score(found, "(labels)", PLANTED_LAYER)
    assert accuracy.metric == "accuracy" and accuracy.low > 0.75 > accuracy.shuffled_high
    assert (accuracy.n, accuracy.groups) == (240, 40)
    assert score(found, "halves", 0).n == 120
    assert score(found, "high", PLANTED_LAYER).value > 0.95


def test_scores_are_tidy_and_hold_layer_0_beside_each() -> None:
    scores = probes().scores
    assert list(scores.columns) == COLUMNS
    assert len(scores) == 4 * (1 + 3 + 3) and not scores.isna().any().any()
    assert list(dict.fromkeys(scores.concept)) == [
        "(labels)",
        "high",
        "low",
        "middle",
        "planted",
        "noise",
        "halves",
    ]
    for row in scores.itertuples():
        assert row.layer0 == score(probes(), row.concept, 0).value
        assert row.low <= row.value <= row.high and row.shuffled_low <= row.shuffled <= row.shuffled_high


def test_layer_0_is_a_control_even_where_it_is_not_asked_for() -> None:
    found = fit_probes(model(), planted()[0], 0.66, concepts=["planted"], **QUICK)
    assert found.layers == (2,) and found.concepts == ("planted",) and len(found.scores) == 1
    assert found.scores.layer0.item() == pytest.approx(score(probes(), "planted", 0).value)
    assert torch.allclose(found["planted"].vectors, probes()["planted"].vectors[[2]], atol=1e-5)


def test_read_outs_are_in_the_units_of_the_annotations() -> None:
    corpus, _ = planted()
    pooled = capture(model(), corpus.texts, [PLANTED_LAYER])[:, 0]
    read = probes().read_out(pooled, PLANTED_LAYER)[:, probes().concept_index("planted")].numpy()
    assert np.abs(read - corpus.values("planted")).mean() < 0.02
    # ... and those of labels that exclude each other are the logits of a softmax
    columns = [probes().concept_index(name) for name in ("high", "low", "middle")]
    logits = probes().read_out(pooled, PLANTED_LAYER)[:, columns]
    assert torch.allclose(logits.sum(-1), torch.zeros(240), atol=1e-3)
    assert (logits.argmax(-1).numpy() == corpus.label_matrix().argmax(1)).mean() > 0.85


def test_read_out_is_scale_times_projection_plus_offset() -> None:
    found = probes()
    stream = torch.randn(2, 5, model().d_model, generator=torch.Generator().manual_seed(0))
    for row, layer in enumerate(found.layers):
        u, scale, offset = (
            part[row].double().numpy() for part in (found.directions, found.scale, found.offset)
        )
        expected = np.einsum("bpd,cd->bpc", stream.double().numpy(), u) * scale + offset
        assert np.allclose(found.read_out(stream.double(), layer).numpy(), expected)
        assert np.allclose(found.read_out(stream, layer).numpy(), expected, atol=1e-3)
    assert found.read_out(stream, 0.66).equal(found.read_out(stream, 2))
    assert torch.allclose(found.directions.norm(dim=-1), torch.ones(4, 6))


def test_reference_statistics_are_those_of_the_corpus_s_tokens() -> None:
    found, tokens = probes(), token_streams([0, 1, 2, 3])
    assert torch.allclose(found.reference_mean.double(), tokens.mean(1), atol=1e-4)
    assert torch.allclose(found.residual_norms.double(), tokens.norm(dim=-1).mean(1), rtol=1e-4)
    drawn = token_streams([0, 1, 2, 3], sampled(texts(), 0))
    along = torch.einsum("ltd,lcd->ltc", drawn, found.directions.double())
    assert torch.allclose(found.reference_std.double(), along.std(1, correction=0), rtol=1e-3)


def test_the_spread_is_measured_on_a_seeded_sample_of_a_large_corpus() -> None:
    written = [f"text {row}" for row in range(2000)]
    sample = sampled(written, 0)
    assert len(set(sample)) == SPREAD_TEXTS and sample == sampled(written, 0) != sampled(written, 1)
    assert [written.index(text) for text in sample] == sorted(written.index(text) for text in sample)
    assert set(sampled(written[::-1], 0)) == set(sample)  # whatever their order


def test_the_same_call_gives_the_same_file(tmp_path: Any) -> None:
    options: dict[str, Any] = {
        "concepts": ["planted", "high"],
        "permutations": 2,
        "bootstrap": 40,
        "progress": False,
    }
    first, second = (fit_probes(model(), planted()[0], [1, 2], **options) for _ in range(2))
    other = fit_probes(model(), planted()[0], [1, 2], seed=1, **options)
    contents = [
        found.save(tmp_path / f"{n}.safetensors").read_bytes()
        for n, found in enumerate((first, second, other))
    ]
    assert contents[0] == contents[1] != contents[2]


def test_padding_batches_and_order_do_not_matter() -> None:
    corpus, read = planted()[0], deepcopy(model())
    by_length = corpus.frame.sort_values("text", key=lambda texts: texts.str.len(), kind="stable")
    in_order = Corpus.from_columns(
        {name: by_length[name].tolist() for name in ("text", "labels", "planted", "group")},
        dimensions={"planted": (-1.0, 1.0)},
    )
    options = {**QUICK, "concepts": ["high", "planted"]}
    one = fit_probes(read, corpus, [2], batch_size=1, **options)
    for side, given in (("left", corpus), ("right", corpus), ("left", in_order)):
        read.tokenizer.padding_side = side
        many = fit_probes(read, given, [2], batch_size=32, **options)
        assert torch.allclose(one.directions, many.directions, atol=1e-5), side
        assert torch.allclose(one.reference_std, many.reference_std, rtol=1e-5), side


@pytest.mark.parametrize("estimator", ["mean_difference", "ridge"])
def test_other_estimators_fit_both_kinds(estimator: str) -> None:
    found = fit_probes(model(), planted()[0], [2], estimator=estimator, concepts=["high", "planted"], **QUICK)
    assert found.metadata["estimators"] == {"dimension": estimator, "label": estimator}
    assert score(found, "high", 2).value > 0.8 and score(found, "planted", 2).value > 0.5
    assert np.isnan(score(found, "planted", 2).low) and np.isnan(score(found, "planted", 2).shuffled)


def test_the_mean_difference_of_a_corpus_is_the_one_of_its_features() -> None:
    corpus, _ = planted()
    found = fit_probes(
        model(), corpus, [1], estimator="mean_difference", concepts=["high"], start=0, pool="last", **QUICK
    )
    features = capture(model(), corpus.texts, [1], "last", start=0)[:, 0].double().numpy()
    means = np.stack([features[column].mean(0) for column in corpus.label_matrix().T])
    expected = means[corpus.labels.index("high")] - means.mean(0)
    assert np.allclose(found["high"].at(1).numpy(), expected / np.linalg.norm(expected), atol=1e-5)
    assert (found.metadata["pool"], found.metadata["start"]) == ("last", 0)


def test_pooling_may_be_a_function() -> None:
    def first(stream: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        return (stream * counted[..., None]).amax(-2)

    found = fit_probes(model(), planted()[0], [2], concepts=["planted"], pool=first, **QUICK)
    assert found.metadata["pool"] == "first"
    assert torch.allclose(found.reference_mean, probes().reference_mean[[2]], atol=1e-5)


def test_features_that_never_vary_give_no_direction() -> None:
    corpus = Corpus.from_columns(
        {"text": [f"{text} sun" for text in texts(40)], "valence": np.linspace(-1, 1, 40)},
        dimensions={"valence": (-1, 1)},
    )
    constant = lambda stream, counted: torch.ones_like(stream[:, :, 0])  # noqa: E731
    found = fit_probes(model(), corpus, [1], pool=constant, **QUICK)
    assert not found.directions.any() and not found.scale.any()
    assert found.offset.item() == pytest.approx(corpus.values("valence").mean(), abs=1e-6)
    assert found.scores.value.item() == 0


def test_metadata_says_how_it_was_made() -> None:
    about = probes().metadata
    corpus, _ = planted()
    assert (
        about["corpus"] == "planted"
        and about["corpus_fingerprint"] == corpus.fingerprint
        and about["texts"] == 240
    )
    assert about["estimators"] == {"dimension": "ridge", "label": "logistic"}
    assert (about["folds"], about["bootstrap"], about["seed"]) == (5, 100, 0)
    assert about["permutations"] == {"label": 8, "dimension": 100}
    assert set(about["versions"]) >= {"torch", "scikit-learn"}
    assert probes().model == model().name and probes().fingerprint == model().fingerprint()
    assert probes().ranges == {"planted": (-1.0, 1.0), "noise": (0.0, 1.0), "halves": (-1.0, 1.0)}
    assert probes().kinds["high"] == "label" and probes().kinds["noise"] == "dimension"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "svm"}, 'estimator="svm" is not understood: give one of "auto"'),
        ({"estimator": "logistic", "concepts": ["planted"]}, "is for labels"),
        ({"concepts": ["joy"]}, "no concept 'joy'"),
        ({"folds": 41}, "40 groups of texts cannot be dealt into 41 folds"),
        ({"layers": 7}, "layer 7 does not exist"),
        ({"pool": "max"}, 'pool="max" is not understood'),
        ({"permutations": 1}, "at least 2"),
        ({"bootstrap": 5}, "at least 40"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fit_probes(model(), planted()[0], **{**QUICK, **options})
    assert "\n" not in str(caught.value)


def test_residual_streams_that_are_not_finite_are_refused() -> None:
    broken = tiny_model("gpt2", seed=3)
    with torch.no_grad():
        broken.underlying.transformer.h[1].mlp.c_proj.bias.fill_(torch.inf)
    with pytest.raises(InputError, match=r"is not finite for \d+ of \d+ tokens of a batch, first at layer 2"):
        fit_probes(broken, planted()[0], **QUICK)


def test_the_texts_that_the_spread_is_measured_on_tell_that_of_all() -> None:
    live, passages = load_model("bundled"), load_corpus("passages").texts
    drawn = sampled(passages, 0)
    assert len(drawn) == SPREAD_TEXTS < len(passages) / 4
    vectors = live.capture(drawn, [2])[:, 0]
    directions = torch.nn.functional.normalize(vectors[:64] - vectors.mean(0), dim=-1)
    spreads = [
        token_spread(live, texts, [2], directions[None], vectors.mean(0)[None], 1, 32)
        for texts in (drawn, passages)
    ]
    off = spreads[0] / spreads[1] - 1
    assert off.abs().max() < 0.06 and off.square().mean().sqrt() < 0.02


def test_few_texts_are_fitted_on_one_thread_whatever_torch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has to be told: the limit of OpenMP is not heeded once it was, though the number that it gives is that limit."""
    before, told = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with pytest.raises(KeyboardInterrupt), few_threads(torch.zeros(600, 1, 64)):
        assert told == [1] and torch.get_num_threads() == 1
        raise KeyboardInterrupt
    assert told == [1, before]
    with few_threads(torch.zeros(2**19, 1, 32)):
        assert torch.get_num_threads() == before
    assert told == [1, before]
