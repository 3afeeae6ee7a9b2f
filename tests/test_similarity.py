"""Likeness of geometries, against scipy, brute force and what must be so."""

from itertools import permutations as orders
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from crafted import probe_set
from scipy.stats import spearmanr
from small_probes import model, texts
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.probes.alignment import cka, criterion, kernels, own_criterion, permuted
from emoprobe.probes.similarity import activation_similarity, layer_similarity, model_similarity

CONCEPTS, WIDTH = 16, 24


def drift(layers: int = 4, seed: int = 0, width: int = WIDTH) -> np.ndarray[Any, Any]:
    """Return vectors (layers, concepts, d_model) that change step by step, each layer in another basis."""
    generator = np.random.default_rng(seed)
    now, found = generator.normal(size=(CONCEPTS, width)), []
    for _ in range(layers):
        turn = np.linalg.qr(generator.normal(size=(width, width)))[0]
        found.append(now @ turn)
        now = now + 0.5 * generator.normal(size=now.shape)
    return np.stack(found)


def kernel(vectors: Any) -> Any:
    return vectors @ vectors.swapaxes(-1, -2)


# The criterion -------------------------------------------------------------------------------------------------------


def test_the_criterion_is_its_definition_over_quadruples() -> None:
    """Song et al. 2012, theorem 5: the mean over all four different vectors."""
    a, b = (kernel(part) for part in np.random.default_rng(0).normal(size=(2, 6, 9)) + 1)
    terms = [
        a[i, j] * (b[i, j] + b[q, r] - b[i, q] - b[j, r])
        for i, j, q, r in product(range(6), repeat=4)
        if len({i, j, q, r}) == 4
    ]
    assert criterion(kernels(a[None]), kernels(b[None])).item() == pytest.approx(np.mean(terms))


def test_alignment_is_blind_to_basis_scale_and_shift_and_to_dimensions() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 10))
    turn = np.linalg.qr(generator.normal(size=(10, 10)))[0]
    assert cka(kernel(x)[None], kernel(3 * x @ turn + 5)[None]).item() == pytest.approx(1)
    # Noise of far more dimensions than vectors: the plain estimator finds it alike, which is why it is not taken.
    centre, plain, unbiased = np.eye(12) - 1 / 12, [], []
    for _ in range(200):
        a, b = (kernel(generator.normal(size=(12, 300))) for _ in range(2))
        inner = [centre @ part @ centre for part in (a, b)]
        plain.append((inner[0] * inner[1]).sum() / np.linalg.norm(inner[0]) / np.linalg.norm(inner[1]))
        unbiased.append(
            criterion(kernels(a[None]), kernels(b[None])).item() / 300
        )  # 300: that of x with itself
    assert np.mean(plain) > 0.9 and abs(np.mean(unbiased)) < 0.05


def test_permuted_kernels_are_those_of_permuted_vectors() -> None:
    x = np.random.default_rng(0).normal(size=(2, 8, 5))
    order = np.random.default_rng(1).permutation(8)
    one, other = permuted(kernels(kernel(x)), order), kernels(kernel(x[:, order]))
    assert all(np.allclose(*parts) for parts in zip(one, other, strict=True))
    assert np.allclose(own_criterion(one), np.diag(criterion(other, other)))


# Directions ----------------------------------------------------------------------------------------------------------


def test_measures_are_those_of_scipy_and_of_the_definitions() -> None:
    given = drift()
    found = layer_similarity(probe_set(given), permutations=20)
    unit = given / np.linalg.norm(given, axis=-1, keepdims=True)
    pairs = np.triu_indices(CONCEPTS, 1)
    cosines = [kernel(part)[pairs] for part in unit]
    for a, b in product(range(4), repeat=2):
        rho = spearmanr(cosines[a], cosines[b]).statistic
        assert found.matrix("rsa").loc[a, b] == pytest.approx(rho, abs=1e-5)
        cosine = cosines[a] @ cosines[b] / np.linalg.norm(cosines[a]) / np.linalg.norm(cosines[b])
        assert found.matrix("rsa_cosine").loc[a, b] == pytest.approx(cosine, abs=1e-5)
        alignment = cka(kernel(unit[a])[None], kernel(unit[b])[None]).item()
        assert found.matrix("cka").loc[a, b] == pytest.approx(alignment, abs=1e-5)
    rsa = found.matrix("rsa")
    assert np.allclose(np.diag(rsa), 1) and np.allclose(rsa, rsa.T)
    assert rsa.loc[0, 1] > rsa.loc[0, 3] + 0.1  # layers drift apart


def test_p_values_are_exact_where_all_permutations_can_be_tried() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=(2, 1, 5, 4))
    second = 0.6 * second + 0.6 * first
    found = model_similarity(probe_set(first), probe_set(second), permutations=4000)
    pairs = np.triu_indices(5, 1)
    unit = [part[0] / np.linalg.norm(part[0], axis=-1, keepdims=True) for part in (first, second)]
    a, b = (kernel(part) for part in unit)
    for measure in ("rsa", "cka"):
        row = found.frame[found.frame.measure == measure].iloc[0]
        values = []
        for order in map(list, orders(range(5))):
            other = b[np.ix_(order, order)]
            rho = spearmanr(a[pairs], other[pairs]).statistic
            values.append(rho if measure == "rsa" else cka(a[None], other[None]).item())
        exact = np.mean(np.array(values) >= row.value - 1e-6)
        assert row.p == pytest.approx(exact, abs=0.025)


def test_intervals_cover_what_is_true() -> None:
    """Concepts drawn anew from one population: the interval of one draw holds the value of very many."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(6, 20))

    def drawn(count: int) -> tuple[Any, Any]:
        latent = generator.normal(size=(count, 6))
        return tuple(
            probe_set((latent @ mixing + 1.5 * generator.normal(size=(count, 20)))[None]) for _ in range(2)
        )

    true = model_similarity(*drawn(120), permutations=0).frame.set_index("measure").value
    held = {measure: 0 for measure in true.index}
    for _ in range(30):
        rows = model_similarity(*drawn(20), permutations=0).frame.set_index("measure")
        for measure in held:
            held[measure] += rows.low[measure] <= true[measure] <= rows.high[measure]
    assert min(held.values()) >= 25, held


def test_shuffled_labels_stand_beside_and_are_reported() -> None:
    shuffled = torch.from_numpy(np.stack([drift(seed=seed) for seed in range(1, 4)]))
    found = layer_similarity(probe_set(drift()), shuffled=shuffled, permutations=50)
    each = [layer_similarity(probe_set(part.numpy()), permutations=0).matrix("rsa") for part in shuffled]
    rows = found.frame[found.frame.measure == "rsa"].set_index(["layer_a", "layer_b"])
    for pair in ((0, 1), (0, 3)):
        values = [part.loc[pair] for part in each]
        assert rows.shuffled[pair] == pytest.approx(np.mean(values), abs=1e-5)
        assert rows.shuffled_high[pair] == pytest.approx(max(values), abs=1e-5)
    assert "above all vectors of shuffled labels" in found.report() and "16 compared" in repr(found)
    # Layers are alike whatever the labels were: permuting concepts alone would have called that a finding.
    assert (rows.p < 0.05).all() and not (rows.low > rows.shuffled_high).drop(
        [(i, i) for i in range(4)]
    ).all()


def test_models_of_other_widths_and_orders_of_concepts_are_compared_by_name() -> None:
    first = drift(2)
    wide = first @ np.linalg.qr(np.random.default_rng(9).normal(size=(40, 40)))[0][:WIDTH]
    names = tuple(f"concept {number}" for number in range(CONCEPTS))
    turned = probe_set(wide[:, ::-1].copy(), names[::-1])
    found = model_similarity(probe_set(first, names), turned, permutations=50)
    assert np.allclose(np.diag(found.matrix("rsa")), 1, atol=1e-5) and found.n == CONCEPTS
    assert np.allclose(np.diag(found.matrix("cka")), 1, atol=1e-4)
    some = probe_set(wide[:, :6], ("other", *names[1:6]))
    assert model_similarity(probe_set(first, names), some, permutations=0).n == 5
    few = probe_set(wide[:, :6], ("a", "b", "c", *names[:3]))
    with pytest.raises(InputError, match="3 common concepts"):
        model_similarity(probe_set(first, names), few)
    with pytest.raises(InputError, match="no measure 'size'"):
        found.matrix("size")
    assert found.plot("cka").axes[0].get_xlabel() == "layer of crafted"


def test_unrelated_models_are_not_found_alike() -> None:
    p = [
        model_similarity(probe_set(drift(1, seed)), probe_set(drift(1, seed + 50)), permutations=99).frame.p
        for seed in range(30)
    ]
    assert np.mean(np.array(p) < 0.1) < 0.2 and 0.3 < np.mean(p) < 0.7


# Activations ---------------------------------------------------------------------------------------------------------


def test_activations_of_one_chunk_are_aligned_as_wholes() -> None:
    other, written = tiny_model("llama", 3), texts(40)
    found = activation_similarity(model(), other, written, [0, 2], [1, 3], chunk=40, permutations=19)
    a, b = model().capture(written, [0, 2]).double(), other.capture(written, [1, 3]).double()
    expected = cka(*(kernel(part.numpy().swapaxes(0, 1)) for part in (a, b)))
    assert np.allclose(found.matrix("cka"), expected, atol=1e-6)
    assert found.matrix("cka").index.tolist() == [0, 2] and found.matrix("cka").columns.tolist() == [1, 3]
    assert found.frame.low.isna().all()  # one chunk has no interval
    assert (found.frame.p == 0.05).all() and found.names == (model().name, other.name)


def test_chunks_add_up_to_about_the_whole() -> None:
    other, written = tiny_model("gpt_neox", 1), texts(240)
    whole = activation_similarity(model(), other, written, [1, 3], chunk=240, permutations=0).frame
    found = activation_similarity(model(), other, written, [1, 3], chunk=30, permutations=19)
    assert np.abs(found.frame.value - whole.value).max() < 0.06
    assert ((found.frame.low < whole.value) & (whole.value < found.frame.high)).all()
    assert found.n == 240 and (found.frame.p == 0.05).all()
    itself = activation_similarity(model(), model(), written, permutations=0)
    assert np.allclose(np.diag(itself.matrix("cka")), 1) and "the highest" in itself.report()


@pytest.mark.parametrize("side", ["left", "right"])
def test_alignment_does_not_depend_on_batches_or_padding(side: str) -> None:
    other, written = tiny_model("llama", 3), texts(60)
    alone = activation_similarity(model(), other, written, chunk=30, permutations=5, batch_size=1).frame
    other.tokenizer.padding_side = side
    batched = activation_similarity(model(), other, written, chunk=30, permutations=5, batch_size=32).frame
    assert np.allclose(alone.value, batched.value, atol=1e-5) and alone.p.equals(batched.p)


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(InputError, match="3 texts"):
        activation_similarity(model(), model(), texts(3))
    with pytest.raises(InputError, match="chunk=2"):
        activation_similarity(model(), model(), texts(30), chunk=2)
