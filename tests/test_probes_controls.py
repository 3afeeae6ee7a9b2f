"""Control tasks, random features, corrected p: against what they mean computed the long way."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from small_probes import model, planted, texts
from tiny import tiny_model

from emoprobe.probes.control_task import DRAWS, control_targets
from emoprobe.probes.fit import corrected_p
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.random_features import random_features, token_shares
from emoprobe.probes.tasks import plan
from emoprobe.probes.validation import permutation_p


def test_control_tasks_keep_the_annotations_and_are_decided_by_words() -> None:
    labels, dimensions, _ = plan(planted()[0])
    rows = np.arange(0, 240, 2)
    (dealt,) = control_targets(labels, texts(), rows)
    assert np.array_equal(dealt.sum(0), labels.targets[rows].sum(0)) and (dealt.sum(1) == 1).all()
    drawn = control_targets(dimensions, texts(), rows)
    assert len(drawn) == DRAWS
    for targets in drawn:
        assert np.array_equal(np.sort(targets, 0), np.sort(dimensions.targets[rows], 0))
    # The same words in another order have the same control value; the targets are a function of counts.
    words = [sorted(re.findall(r"\w+", text)) for text in texts()]
    turned = [" ".join(reversed(text.split())) for text in texts()]
    assert [sorted(text.split()) for text in turned] == words
    assert all(
        np.array_equal(a, b) for a, b in zip(drawn, control_targets(dimensions, turned, rows), strict=True)
    )
    kinds = sorted({word for text in words for word in text})
    shares = np.array([[text.count(kind) / len(text) for kind in kinds] for text in words])[rows]
    design = np.column_stack([shares, np.ones(len(rows))])
    rank = drawn[0][:, 0].argsort().argsort().astype(float)
    told = design @ np.linalg.lstsq(design, rank, rcond=None)[0]
    assert np.corrcoef(told, rank)[0, 1] > 0.95
    real = dimensions.targets[rows, 1].argsort().argsort().astype(float)  # noise has nothing to do with words
    assert np.corrcoef(design @ np.linalg.lstsq(design, real, rcond=None)[0], real)[0, 1] < 0.7


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_random_features_are_means_over_the_counted_tokens(family: str) -> None:
    live = tiny_model(family)
    some = texts()[:7]
    by_one, by_many = (token_shares(live, some, 1, size) for size in (1, 32))
    assert np.allclose(by_one.toarray(), by_many.toarray())
    ids = [live.tokenize(text).input_ids[0, 1:].tolist() for text in some]
    kinds = sorted({token for row in ids for token in row})
    table = np.random.default_rng(3).standard_normal((len(kinds), 11))
    expected = np.stack([np.mean([table[kinds.index(token)] for token in row], axis=0) for row in ids])
    assert np.allclose(random_features(by_many, 11, 3), expected)


def test_random_features_do_not_depend_on_how_many_kinds_come_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = token_shares(model(), texts()[:20])
    whole = random_features(shares, 5)
    monkeypatch.setattr("emoprobe.probes.random_features.TOKENS_AT_ONCE", 3)
    assert np.allclose(random_features(shares, 5), whole)
    assert torch.from_numpy(whole).isfinite().all()


def test_permutation_p_counts_and_goes_on_as_students_t() -> None:
    null = np.arange(9.0)[:, None] * np.ones((1, 4))
    p = permutation_p(np.array([4.0, 8.0, 9.0, np.nan]), null)
    assert p[0] == 6 / 10 and p[1] == 2 / 10
    assert p[2] == pytest.approx(0.0608, abs=0.0005)  # t(8) of (9 − 4) / (2.739 · √(10/9)) = 1.73
    assert np.isnan(p[3]) and np.isnan(permutation_p(np.ones(1), np.zeros((1, 1)))).all()
    generator = np.random.default_rng(0)
    chance = permutation_p(generator.normal(size=4000), generator.normal(size=(10, 4000)))
    for level in (0.01, 0.05, 0.2):
        assert (chance <= level).mean() == pytest.approx(level, abs=0.25 * level + 0.003)


def test_p_is_corrected_for_all_concepts_at_their_best_layers() -> None:
    rows = [("a", 0.5), ("a", 0.01), ("b", 0.04), ("c", 0.03), (LABELS, 0.02), ("d", np.nan)]
    scores = pd.DataFrame(rows, columns=["concept", "p"]).assign(value=1.0)
    q = corrected_p(scores)
    # Benjamini & Hochberg of 0.01, 0.03, 0.04: 0.03, 0.04 (0.045 is more than the next), 0.04
    assert q[:5].tolist() == pytest.approx([0.03, 0.03, 0.04, 0.04, 0.02]) and np.isnan(q[5])


def test_a_score_above_shuffled_ones_that_never_vary_has_no_tail() -> None:
    assert permutation_p(np.ones(1), np.zeros((5, 1))) == 0
