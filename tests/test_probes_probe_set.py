"""The probe set as a value: algebra of directions, its file, its models, and what it says of itself."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from small_probes import model, probes
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.probes import Direction, ProbeSet, load_probes, logit_lens, trace
from emoprobe.probes.geometry import permutation_test
from emoprobe.probes.probe_set import TENSORS
from emoprobe.probes.summary import best_rows
from emoprobe.records import KEY

# Directions ----------------------------------------------------------------------------------------------------------


def test_directions_add_subtract_and_scale() -> None:
    high, low = probes()["high"], probes()["low"]
    assert torch.equal((high - low).vectors, high.vectors - low.vectors)
    assert torch.equal((high + low).vectors, high.vectors + low.vectors)
    assert torch.equal((2 * high).vectors, 2 * high.vectors) and torch.equal(
        (high * 2).vectors, (high / 0.5).vectors
    )
    assert torch.equal((-high).vectors, -high.vectors)
    assert torch.equal(((high - low) / 2 + low).vectors, (high.vectors - low.vectors) / 2 + low.vectors)
    assert str(2 * (high - low)) == "<Direction 2 (high - low): layers [0, 1, 2, 3], width 32>"
    assert (high - -low).concept == "high - (-low)"
    assert (high - low).residual_norms is high.residual_norms


def test_what_does_not_fit_together_is_not_combined() -> None:
    high = probes()["high"]
    for other in (
        Direction("short", (1,), torch.ones(1, 32)),
        Direction("wide", high.layers, torch.ones(4, 33)),
    ):
        with pytest.raises(InputError, match="cannot be combined"):
            high + other
    with pytest.raises(TypeError):
        high + 1  # type: ignore[operator]
    with pytest.raises(InputError, match="do not fit 2 layers"):
        Direction("x", (0, 1), torch.ones(3, 4))
    with pytest.raises(InputError, match="residual norms"):
        Direction("x", (0, 1), torch.ones(2, 4), torch.ones(3))
    with pytest.raises(InputError, match=r"has no layer 9: it has \[0, 1, 2, 3\]"):
        high.at(9)


def test_a_random_direction_has_the_same_norms_and_its_own_way() -> None:
    scaled = Direction("long", (0, 1, 2), torch.randn(3, 64) * torch.tensor([[1.0], [5.0], [0.1]]))
    first, again, other = scaled.random_like(1), scaled.random_like(1), scaled.random_like(2)
    assert torch.allclose(first.vectors.norm(dim=-1), scaled.vectors.norm(dim=-1))
    assert torch.equal(first.vectors, again.vectors)
    for a, b in ((first, other), (first, scaled)):
        assert torch.cosine_similarity(a.vectors, b.vectors, dim=-1).abs().max() < 0.5
    cosines = [
        scaled.random_like(seed).vectors[0] @ scaled.vectors[0] / scaled.vectors[0].norm() ** 2
        for seed in range(300)
    ]
    assert torch.stack(cosines).std().item() == pytest.approx(1 / 8, rel=0.15)  # 1/√64: uniform on the sphere
    assert abs(torch.stack(cosines).mean().item()) < 0.03


def test_a_probe_set_is_asked_by_name() -> None:
    direction = probes()["planted"]
    assert direction.concept == "planted" and direction.layers == (0, 1, 2, 3)
    assert torch.equal(direction.at(2), probes().directions[2, probes().concept_index("planted")])
    assert direction.residual_norms is probes().residual_norms
    assert "planted" in probes() and "joy" not in probes() and list(probes()) == list(probes().concepts)
    for ask in (
        lambda: probes()["joy"],
        lambda: probes().best_layer("joy"),
        lambda: probes().concept_index("joy"),
    ):
        with pytest.raises(InputError, match="no probe for 'joy': there are high, low, middle"):
            ask()


# Files ---------------------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = probes().save(tmp_path / "a" / "p.safetensors")
    back = load_probes(path)
    for name in TENSORS:
        assert (
            torch.equal(getattr(back, name), getattr(probes(), name))
            and getattr(back, name).dtype == torch.float32
        )
    for name in ("model", "n_layers", "fingerprint", "layers", "concepts", "kinds", "ranges", "metadata"):
        assert getattr(back, name) == getattr(probes(), name)
    pd.testing.assert_frame_equal(back.scores, probes().scores)
    assert back.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert repr(back) == repr(probes())


def test_missing_scores_survive_the_file(tmp_path: Path) -> None:
    scores = probes().scores.assign(low=np.nan, shuffled=np.nan)
    bare = replace(probes(), scores=scores)
    pd.testing.assert_frame_equal(load_probes(bare.save(tmp_path / "p.safetensors")).scores, scores)
    assert "Not supported" in bare.report()


def test_damaged_foreign_and_later_files_are_refused(tmp_path: Path) -> None:
    path = probes().save(tmp_path / "p.safetensors")
    content = path.read_bytes()
    bad = tmp_path / "bad.safetensors"

    def refused(written: bytes, message: str) -> None:
        bad.write_bytes(written)
        with pytest.raises(InputError, match=message):
            load_probes(bad)

    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        refused(content[:length], "damaged")
    flipped = bytearray(content)
    flipped[-10] ^= 1  # one bit of one tensor
    refused(bytes(flipped), "its content is not what was written")
    refused(b"not a probe set at all" * 10, "damaged")
    tensors = load_file(path)
    refused(save(tensors), "not written by emoprobe")
    record = json.loads(_metadata(path)[KEY])
    for change, message in (
        ({"kind": "valuation"}, "holds a valuation, not a probe set"),
        ({"version": 99}, "has format 99"),
        ({"concepts": ["high"]}, "its content is not"),
        ({"scores": {"columns": [], "rows": []}}, "its content is not"),
    ):
        refused(save(tensors, {KEY: json.dumps({**record, **change})}), message)
    refused(
        save(tensors, {KEY: json.dumps({k: v for k, v in record.items() if k != "model"})}),
        "its content is not",
    )
    refused(
        save(tensors, {KEY: json.dumps({"kind": "probe set", "version": 1})}), "damaged.*KeyError: 'digest'"
    )
    with pytest.raises(InputError, match="no file"):
        load_probes(tmp_path / "nowhere.safetensors")
    assert load_probes(path).concepts == probes().concepts


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_a_save_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = probes().save(tmp_path / "p.safetensors")
    before = path.read_bytes()
    broken = replace(probes(), metadata={"nan": float("nan")})
    with pytest.raises(ValueError):
        broken.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Models --------------------------------------------------------------------------------------------------------------


def test_a_model_of_another_shape_is_refused_and_another_of_the_same_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probes().check_model(model())
    narrow = replace(
        probes(), directions=probes().directions[..., :16], reference_mean=probes().reference_mean[:, :16]
    )
    shallow = replace(probes(), n_layers=7)
    for other in (narrow, shallow):
        for use in (
            lambda other=other: other.check_model(model()),
            lambda other=other: trace(model(), other, "hello"),
            lambda other=other: logit_lens(model(), other, 1),
        ):
            with pytest.raises(
                InputError, match=r"fitted on tiny-gpt2-0 \(width .* do not fit tiny-gpt2-0 \(width 32, 3"
            ):
                use()
    with pytest.warns(UserWarning, match="differ from those of tiny-gpt2-1"):
        trace(tiny_model("gpt2", seed=1), probes(), "hello")


def test_layers_that_were_not_fitted_are_refused() -> None:
    part = replace(probes(), layers=(0, 1, 3, 9), n_layers=9)
    with pytest.raises(InputError, match="no probe was fitted at layer 2: there are layers 0, 1, 3, 9"):
        part.read_out(torch.zeros(32), 2)
    assert part.layer_index(1.0) == 3 and part.layer_index(-1) == 3


# Words and pictures --------------------------------------------------------------------------------------------------


def crafted(*rows: dict[str, Any], **other: Any) -> ProbeSet:
    """Return the probe set with other scores."""
    base = {
        "metric": "pearson_r",
        "low": 0.5,
        "high": 0.7,
        "shuffled": 0.0,
        "shuffled_low": -0.1,
        "shuffled_high": 0.1,
        "shuffled_best_high": 0.2,
        "p": 0.001,
        "q": 0.01,
    }
    base |= {
        "random_features": 0.1,
        "random_features_gain_low": 0.4,
        "random_features_gain_high": 0.6,
        "control_task": 0.2,
        "selectivity": 0.4,
        "selectivity_low": 0.3,
        "selectivity_high": 0.5,
        "split_half": 0.5,
        "split_half_shuffled": 0.0,
        "split_half_shuffled_high": 0.3,
    }
    base |= {
        "chance": 0.0,
        "layer0": 0.2,
        "layer0_gain_low": 0.3,
        "layer0_gain_high": 0.5,
        "bag_of_words": 0.3,
        "bag_of_words_gain_low": 0.2,
        "bag_of_words_gain_high": 0.4,
        "n": 240,
        "groups": 40,
        "layer": 1,
        "value": 0.6,
        "concept": "planted",
    }
    frame = pd.DataFrame([{**base, **row} for row in rows])[list(probes().scores.columns)]
    return replace(probes(), scores=frame, **other)


def test_the_best_layer_is_the_shallowest_of_the_best() -> None:
    found = crafted(
        {"layer": 0, "value": 0.5},
        {"layer": 1, "value": 0.6},
        {"layer": 2, "value": 0.6},
        {"layer": 0, "concept": "high", "metric": "auc", "value": 0.6},
        {"layer": 1, "concept": "high", "metric": "auc", "value": 0.7},
        {"layer": 2, "concept": "high", "metric": "auc", "value": 0.9},
        {"layer": 0, "concept": "(labels)", "metric": "accuracy", "value": 1.0},
        {"layer": 2, "concept": "(labels)", "metric": "accuracy", "value": 0.0},
    )
    assert found.best_layer("planted") == 1 and found.best_layer("high") == 2
    assert found.best_layer() == 2 and found.best_layer("(labels)") == 0
    assert crafted({"value": float("nan")}).best_layer("planted") == 0


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, []),
        ({"shuffled_high": 0.65}, []),  # of one layer, and this is the best of several
        ({"shuffled_best_high": 0.7}, []),  # what counts is what is corrected for all concepts
        ({"q": 0.06}, ["shuffled annotations"]),
        (
            {"q": float("nan"), "shuffled_best_high": 0.6},
            ["shuffled annotations"],
        ),  # an earlier version's file
        ({"q": float("nan")}, []),
        ({"layer0_gain_low": 0.0}, ["the embedding"]),
        ({"random_features_gain_low": 0.0}, ["random features"]),
        ({"selectivity_low": 0.0}, ["a control task"]),
        # Paired differences decide, not where the intervals lie.
        ({"layer0": 0.55, "bag_of_words": 0.55}, []),
        ({"bag_of_words_gain_low": -0.1, "layer0_gain_low": -0.1}, ["the embedding", "a bag of words"]),
    ],
)
def test_evidence_has_to_stand_above_every_control(change: dict[str, float], fails: list[str]) -> None:
    found = crafted({"layer": 0, "value": 0.1}, {"layer": 1, **change})
    (row,) = best_rows(found).to_dict("records")
    assert row["layer"] == 1 and row["fails"] == fails
    assert starred(found) == {COLUMN_OF[name] for name in fails}
    kinds = "Not supported, not told from chance", "Readable, but a control tells as much", "Supported"
    expected = kinds[2] if not fails else kinds["shuffled annotations" not in fails]
    assert found.report().splitlines()[1].startswith(expected)


def test_a_direction_has_to_come_back_and_a_control_to_be_run() -> None:
    unstable = crafted({"split_half": 0.3})
    assert best_rows(unstable).fails.item() == ["stability"]
    assert starred(unstable) == {"halves"}
    columns = ("random_features", "random_features_gain_low", "control_task", "selectivity_low", "split_half")
    bare = crafted(dict.fromkeys(columns, float("nan")))
    assert best_rows(bare).fails.item() == ["random features", "a control task", "stability"]
    assert starred(bare) == set() and row_of(bare)[-7:-4] == ["–", "–", "–"]
    assert bare.report().splitlines()[1].startswith("Readable, ")


def test_the_report_begins_with_the_evidence_and_states_the_numbers() -> None:
    fear = {"concept": "high", "metric": "auc"}
    found = crafted(
        {"value": 0.614, "shuffled": -0.001},
        {**fear, "bag_of_words_gain_low": -0.1},
        {**fear, "concept": "low", "q": 0.5},
    )
    lines = found.report().splitlines()
    assert "tiny-gpt2-0 on planted: ridge for dimensions and logistic for labels" in lines[0]
    assert lines[1:4] == [
        "Supported: planted (layer 1).",
        "Readable, but a control tells as much or was not run: high (layer 1).",
        "Not supported, not told from chance: low (layer 1).",
    ]
    numbers = "planted Pearson r 1 0.61 [0.50, 0.70] 0.00 0.20 0.30 0.10 0.20 0.50 0.01 240 / 40"
    assert " ".join(row_of(found)) == numbers
    legend = "\n".join(lines[-3:])
    assert "best of 4 layers" in legend and "no lower than 0.11 for labels, 0.0099 for dimensions" in legend


def row_of(found: ProbeSet) -> list[str]:
    """Return the report's row of "planted" in words."""
    (row,) = [line for line in found.report().splitlines() if line.split()[:1] == ["planted"]]
    return row.split()


COLUMN_OF = {
    "shuffled annotations": "shuffled",
    "the embedding": "embedding",
    "a bag of words": "words",
    "random features": "random",
    "a control task": "task",
    "stability": "halves",
}


def starred(found: ProbeSet) -> set[str]:
    """Return which controls the report's row of "planted" marks as not passed."""
    cells = row_of(found)[-10:-4]
    return {name for name, cell in zip(COLUMN_OF.values(), cells, strict=True) if cell.endswith("*")}


def test_a_file_of_an_earlier_version_is_read_and_reported(tmp_path: Path) -> None:
    """Its scores lack the later controls, which are NaN."""
    later = [
        name
        for name in probes().scores
        if name in ("p", "q") or name.startswith(("random", "control", "select", "split"))
    ]
    old = replace(probes(), scores=probes().scores.drop(columns=later))
    back = load_probes(old.save(tmp_path / "p.safetensors"))
    assert len(later) == 12 and back.scores[later].isna().all().all()
    pd.testing.assert_frame_equal(back.scores.drop(columns=later), old.scores)
    assert back.report() == old.report() and "–" in old.report()


def test_names_are_escaped_in_html() -> None:
    script = "<script>alert('&')</script>"
    found = crafted({"concept": script}, model=script, metadata={"corpus": script})
    shown = found._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;alert(&#x27;&amp;&#x27;)" in shown
    assert set(re.findall(r"<(\w+)", shown)) == {"p", "table", "thead", "tr", "th", "tbody", "td"}


def test_figures_have_a_panel_for_each_concept_and_leave_no_global_state() -> None:
    from matplotlib import pyplot

    figure = probes().plot()
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert titles == ["(labels)", "planted", "noise", "halves"]
    odd = crafted({"concept": "$x_$"}).plot(["$x_$"])
    odd.canvas.draw()
    assert not pyplot.get_fignums()
    with pytest.raises(InputError, match="no scores for 'joy'"):
        probes().plot(["joy"])


# Geometry and logit lens ---------------------------------------------------------------------------------------------


def test_geometry_is_that_of_unit_directions() -> None:
    found = probes().geometry(0.66)
    unit = probes().directions[2].double().numpy()
    assert found.layer == 2 and np.allclose(found.cosines, unit @ unit.T)
    centred = unit - unit.mean(0)
    eigenvalues = np.linalg.eigvalsh(centred @ centred.T)[::-1]
    assert np.allclose(found.shares, (eigenvalues / eigenvalues.sum())[:5], atol=1e-8)
    points = found.coordinates.to_numpy()
    assert np.allclose(points.mean(0), 0, atol=1e-8)
    assert np.allclose(points @ points.T, centred @ centred.T)  # components keep all distances
    assert found.norms is None
    with pytest.raises(InputError, match="two or more"):
        one = replace(
            probes(),
            concepts=("high",),
            **{
                name: getattr(probes(), name)[:, :1]
                for name in ("directions", "scale", "offset", "reference_std")
            },
        )
        one.geometry(1)


def test_components_are_set_against_human_norms() -> None:
    coordinates = probes().geometry(2).coordinates
    norms = {name: {"valence": -3 * coordinates.PC1[name] + 1} for name in probes().concepts[:5]}
    norms["high"]["arousal"], norms["low"]["arousal"], norms["planted"]["arousal"] = 0.1, 0.9, 0.2
    found = probes().geometry(2, norms).norms
    assert found is not None
    first = found[(found.norm == "valence") & (found.component == "PC1")].iloc[0]
    assert first.r == pytest.approx(-1) and first.n == 5 and 1 / 120 < first.p < 0.05
    assert set(found[found.norm == "arousal"].n) == {3}
    with pytest.raises(InputError, match="only 2 of these concepts have a valence"):
        probes().geometry(2, {"high": {"valence": 1}, "low": {"valence": 0}, "elsewhere": {"valence": 0.5}})


def test_the_permutation_test_is_honest() -> None:
    generator = np.random.default_rng(0)
    chance = [permutation_test(*generator.normal(size=(2, 12)), permutations=200)[1] for _ in range(200)]
    assert 0.4 < np.mean(chance) < 0.6 and np.mean(np.array(chance) < 0.1) < 0.18
    x = generator.normal(size=12)
    assert permutation_test(x, 2 * x + 1)[0] == pytest.approx(1) and permutation_test(x, x)[1] < 0.01
    assert np.isnan(permutation_test(x, np.ones(12))[0])


def test_the_logit_lens_names_the_tokens_whose_logits_move_most() -> None:
    found = probes().logit_lens(model(), 0.66, top=4)
    assert {"concept", "rank", "promoted", "suppressed"} <= set(found.columns) and len(found) == 6 * 4
    tokenizer = model().tokenizer
    for concept, part in found.groupby("concept"):
        logits = model().logit_lens(probes()[str(concept)].at(2))
        words = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
        shown = {
            word: logits[token].item()
            for token, word in enumerate(words)
            if word.strip() and "\ufffd" not in word and token not in tokenizer.all_special_ids
        }
        order = sorted(shown, key=lambda word: -shown[word])
        assert list(part.promoted) == order[:4] and list(part.suppressed) == order[::-1][:4]
        assert list(part["rank"]) == [1, 2, 3, 4]


def test_shapes_have_to_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs scale \(4, 6\), not \(4, 5\)"):
        replace(probes(), scale=torch.ones(4, 5))
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="not written by emoprobe"):
        load_probes(tmp_path / "x.safetensors")
