"""Cosines of directions on topics that had no part in them: as computed one by one, high where planted, else as by chance."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.intervals import exceedance, jackknife
from emoprobe.study.concepts import effects

FAMILIES, TOPICS, EMOTIONS, WIDTH = 3, 5, 4, 12


def noise(seed: int = 0, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape or (FAMILIES, TOPICS, EMOTIONS, WIDTH))
    return values - values.mean(-2, keepdims=True)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def one_by_one(directions: np.ndarray, first: int, second: int, topic: int) -> float:
    rest = [other for other in range(directions.shape[1]) if other != topic]
    found = []
    for emotion in range(directions.shape[2]):
        for one, other in ((first, second), (second, first)):
            mean = directions[other, rest, emotion].mean(0)
            found.append(unit(directions[one, topic, emotion]) @ unit(mean))
    return float(np.mean(found))


def test_held_out_cosines_are_those_computed_one_by_one() -> None:
    directions = noise()
    found = effects.held_out_cosines(effects.same_emotion(effects.products(directions)))
    assert found.shape == (FAMILIES, FAMILIES, TOPICS)
    for first, second, topic in np.ndindex(found.shape):
        assert found[first, second, topic] == pytest.approx(one_by_one(directions, first, second, topic))


def test_leaving_a_topic_out_is_not_having_had_it() -> None:
    directions = noise(1)
    left = effects.left_out(effects.same_emotion(effects.products(directions)))
    for topic in range(TOPICS):
        fewer = np.delete(directions, topic, 1)
        expected = effects.held_out_cosines(effects.same_emotion(effects.products(fewer))).mean(-1)
        assert np.allclose(left[topic], expected)


def test_pooled_cosines_are_of_means_over_topics() -> None:
    directions = noise(2)
    found = effects.pooled_cosines(effects.same_emotion(effects.products(directions)))
    means = directions.mean(1)
    expected = np.mean([unit(means[0, e]) @ unit(means[2, e]) for e in range(EMOTIONS)])
    assert found[0, 2] == pytest.approx(expected) and found[1, 1] == pytest.approx(1)


def test_reliability_is_the_share_of_what_is_planted() -> None:
    shared = np.random.default_rng(0).normal(size=(1, 1, 200, WIDTH))
    directions = shared[:1] + 2 * np.random.default_rng(1).normal(size=(1, 8, 200, WIDTH))
    found = effects.reliability(effects.same_emotion(effects.products(directions)))
    assert found[0] == pytest.approx(1 / (1 + 4 / 8), abs=0.05)
    mean = directions[0].mean(0)
    cosine = np.mean([unit(mean[e]) @ unit(shared[0, 0, e]) for e in range(200)])
    assert cosine / np.sqrt(found[0]) == pytest.approx(1, abs=0.05)


def test_shuffling_hands_the_emotions_of_each_topic_on_alike_in_all_families() -> None:
    directions = noise(3)
    null = effects.shuffled(effects.products(directions), 4, seed=7)
    generator = np.random.default_rng(7)
    for found in null:
        order = generator.permuted(np.tile(np.arange(EMOTIONS), (TOPICS, 1)), axis=1)
        dealt = np.stack([directions[:, topic, order[topic]] for topic in range(TOPICS)], axis=1)
        expected = effects.held_out_cosines(effects.same_emotion(effects.products(dealt))).mean(-1)
        assert np.allclose(found, expected)


def test_what_is_planted_is_found_and_what_is_not_is_not() -> None:
    shared = noise(4, EMOTIONS, WIDTH)
    directions = noise(5) + 0.0
    directions[0] += 2 * shared
    directions[1] += 2 * shared
    dots = effects.products(directions)
    value = effects.held_out_cosines(effects.same_emotion(dots)).mean(-1)
    null = effects.shuffled(dots, 99)
    p = effects.p_apart(value, null)
    assert p[0, 1] == 0.01 and p[0, 0] == 0.01 and value[0, 1] > 0.5
    assert p[2, 2] > 0.05 and p[0, 2] > 0.05
    flipped = directions.copy()
    flipped[1] *= -1
    dots = effects.products(flipped)
    value = effects.held_out_cosines(effects.same_emotion(dots)).mean(-1)
    assert value[0, 1] < -0.5
    assert effects.p_apart(value, effects.shuffled(dots, 99))[0, 1] == 0.01
    assert exceedance(value, effects.shuffled(dots, 99))[0, 1] == 1.0


def test_p_values_of_noise_are_even() -> None:
    ps = []
    for seed in range(120):
        dots = effects.products(noise(100 + seed, 1, TOPICS, EMOTIONS, WIDTH))
        value = effects.held_out_cosines(effects.same_emotion(dots)).mean(-1)
        ps.append(exceedance(value, effects.shuffled(dots, 39, seed))[0, 0])
    assert np.mean(np.array(ps) <= 0.1) < 0.2 and 0.4 < np.mean(ps) < 0.6


def test_intervals_of_held_out_cosines_hold_what_they_say() -> None:
    shared = noise(6, EMOTIONS, WIDTH)

    def value(seed: int, topics: int) -> tuple[float, np.ndarray]:
        directions = noise(1000 + seed, 1, topics, EMOTIONS, WIDTH) + shared
        same = effects.same_emotion(effects.products(directions))
        return effects.held_out_cosines(same).mean(), effects.left_out(same)[:, 0, 0]

    truth = np.mean([value(seed, 6)[0] for seed in range(400)])
    inside = 0
    for seed in range(400, 500):
        low, high = jackknife(*value(seed, 6))
        inside += bool(low <= truth <= high)
    assert inside >= 88


def test_nothing_is_no_direction() -> None:
    directions = noise(8)
    directions[1] = 0.0
    dots = effects.products(directions)
    value = effects.held_out_cosines(effects.same_emotion(dots)).mean(-1)
    assert np.isnan(value[1]).all() and np.isfinite(value[0, 2])
    assert np.isnan(effects.p_apart(value, effects.shuffled(dots, 5))[0, 1])
    rdm, _, _ = effects.rdm_correlations(dots, 5)
    assert np.isnan(rdm[1]).all() and np.isfinite(rdm[0, 2])


def test_rdm_correlations_are_those_computed_one_by_one() -> None:
    directions = noise(9)
    found, _, without = effects.rdm_correlations(effects.products(directions), 3)

    def rdm(family: int, topics: list[int]) -> np.ndarray:
        means = directions[family, topics].mean(0)
        units = means / np.linalg.norm(means, axis=1, keepdims=True)
        return (units @ units.T)[np.triu_indices(EMOTIONS, 1)]

    halves = list(combinations(range(TOPICS), 2))
    assert len(halves) == effects.MOST_HALVINGS
    rhos = []
    for half in halves:
        rest = [topic for topic in range(TOPICS) if topic not in half]
        for one, other in ((0, 2), (2, 0)):
            rhos.append(spearmanr(rdm(one, list(half)), rdm(other, rest)).statistic)
    assert found[0, 2] == pytest.approx(np.mean(rhos))
    fewer, _, _ = effects.rdm_correlations(effects.products(np.delete(directions, 1, 1)), 3)
    assert np.allclose(without[1], fewer)


def test_families_that_lie_alike_inside_are_found_whatever_their_directions() -> None:
    count = 8
    shared = np.random.default_rng(0).normal(size=(count, 40)) * np.linspace(3, 0.2, 40)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    directions = 0.3 * np.random.default_rng(2).normal(size=(3, 6, count, 40))
    directions[0] += shared
    directions[1] += shared @ turn
    dots = effects.products(directions)
    cosine = effects.held_out_cosines(effects.same_emotion(dots)).mean(-1)
    rdm, null, _ = effects.rdm_correlations(dots, 99)
    p = exceedance(rdm, null)
    assert abs(cosine[0, 1]) < 0.3 and rdm[0, 1] > 0.6 and p[0, 1] <= 0.02
    assert p[0, 2] > 0.05


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_means_over_places_do_not_depend_on_what_is_beside_a_text(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    texts = ["We were glad.", "She was sad that the dog had run away, and then calm.", "He felt calm."]
    places = [[[(3, 7)], [(0, 2), (8, 12)]], [[(4, 7)], [(0, 3), (8, 11)]], [[], [(3, 7)]]]
    layers = [0, 2, 3]
    found = dict(effects.span_means(model, texts, places, layers, batch_size=batch_size))
    assert sorted(found) == [0, 1, 2]
    for index, text in enumerate(texts):
        batch = model.tokenize(text)
        stream = model.streams(batch, layers)[:, 0].detach()
        assert batch.offsets is not None
        for number, spans in enumerate(places[index]):
            held = [
                position
                for position, (start, end) in enumerate(batch.offsets[0])
                if position > 0 and any(start < b and a < end for a, b in spans)
            ]
            if not spans:
                assert found[index][number].isnan().all()
            else:
                assert torch.allclose(found[index][number], stream[:, held].mean(1), atol=1e-10)


def test_a_place_beyond_the_tokens_is_refused() -> None:
    model = tiny_model("gpt2")
    model.context_length = 8
    text = "She was sad that the dog had run away, and then he felt calm again."
    with pytest.warns(UserWarning, match="longer"), pytest.raises(InputError, match="do not reach"):
        list(effects.span_means(model, [text], [[[(40, 60)]]], [1]))
