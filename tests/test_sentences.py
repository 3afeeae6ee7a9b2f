"""The two sentences: attention read from a live model, word magnitudes, and the claims of the method's source."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BLOCKS, FAMILIES, HEADS, WIDTH, tiny_model
from torch import Tensor

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import fit_probes
from emoprobe.study import sentence_readings as study
from emoprobe.study.sentence_readings import Bench, emotion_embeddings
from emoprobe.study.sentences import (
    CLAIMS,
    SWEEP,
    _claims,
    _summary,
    compare_sentences,
    sentences,
    shows,
    statistics,
)
from emoprobe.study.source_sentences import GROUPS, SENTENCES, Word
from emoprobe.study.word_magnitudes import (
    Reading,
    gains,
    rank_shifts,
    reading,
    variation,
    word_spans,
    word_tokens,
)
from emoprobe.study.wording import number
from emoprobe.valattn import Valuation, inject

TEXTS = ["I am so glad that you came, without a word!", "The dog"]
LAM = 1.5


# Attention, by hand --------------------------------------------------------------------------------------------------


def attention_by_hand(model: LiveModel, layer: int, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output (position, d_model) and weights (heads, position, position) of one block, from the weights alone."""
    block, size = model._blocks[layer], WIDTH // HEADS
    p = {name: weight.detach().double() for name, weight in block.named_parameters()}
    family = model.underlying.config.model_type
    if family == "gpt2":
        x = normalised(x, p["ln_1.weight"], p["ln_1.bias"])
        qkv = x @ p["attn.c_attn.weight"] + p["attn.c_attn.bias"]
        q, k, v = (part.reshape(-1, HEADS, size).transpose(0, 1) for part in qkv.split(WIDTH, -1))
    elif family == "gpt_neox":
        x = normalised(x, p["input_layernorm.weight"], p["input_layernorm.bias"])
        qkv = x @ p["attention.query_key_value.weight"].T + p["attention.query_key_value.bias"]
        q, k, v = qkv.reshape(-1, HEADS, 3, size).permute(2, 1, 0, 3)
        q, k = rotated(q, size // 4), rotated(k, size // 4)
    else:
        x = x / (x.pow(2).mean(-1, keepdim=True) + model.underlying.config.rms_norm_eps).sqrt()
        x = x * p["input_layernorm.weight"]
        q, k, v = (
            (x @ p[f"self_attn.{n}_proj.weight"].T).reshape(len(x), -1, size).transpose(0, 1) for n in "qkv"
        )
        k, v = (part.repeat_interleave(HEADS // len(part), 0) for part in (k, v))
        q, k = rotated(q, size), rotated(k, size)
    scores = q @ k.mT / size**0.5 + bias
    weights = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)
    joined = (weights @ v).transpose(0, 1).reshape(len(x), WIDTH)
    if family == "gpt2":
        return joined @ p["attn.c_proj.weight"] + p["attn.c_proj.bias"], weights
    if family == "gpt_neox":
        return joined @ p["attention.dense.weight"].T + p["attention.dense.bias"], weights
    return joined @ p["self_attn.o_proj.weight"].T, weights


def normalised(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain + shift


def rotated(x: Tensor, width: int) -> Tensor:
    """Rotary positions (base 10000) on the first `width` coordinates of (heads, position, size)."""
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (
        -torch.arange(0, width, 2, dtype=torch.float64) / width
    )
    one, two, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    turned = [one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()]
    return torch.cat([*turned, rest], -1)


def make_valuation(model: LiveModel, seed: int = 0, layers: tuple[int, ...] = (0, 2)) -> Valuation:
    weight = torch.randn(len(layers), 3, WIDTH, generator=torch.Generator().manual_seed(seed)) / 2
    return Valuation(weight, torch.zeros(len(layers), 3), ("a", "b", "c"), layers)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["padded", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_equals_a_computation_from_the_weights(family: str, texts: list, attention: str) -> None:
    model = tiny_model(family, dtype=torch.float64 if len(texts) == 1 else torch.float32)
    model.underlying.set_attn_implementation(attention)
    valuation, batch, layers = make_valuation(model), model.tokenize(texts), (2, 0, 1)
    with torch.no_grad():
        plain = model.attention(batch, layers)[0]
        with inject(model, valuation, LAM):
            outputs, weights = model.attention(batch, layers)
            streams = model.streams(batch, layers).double()
    assert model.underlying.config._attn_implementation == attention
    assert not any(module._forward_hooks for module in model.underlying.modules())
    for row, real in enumerate(batch.real):
        for place, layer in enumerate(layers):
            x = streams[place, row, real]
            bias = torch.zeros(len(x), len(x), dtype=torch.float64)
            if layer in valuation.layers:
                v = torch.tanh(x @ valuation.weight[valuation.layers.index(layer)].double().T)
                bias = LAM * v @ v.T
            output, weight = attention_by_hand(model, layer, x, bias)
            # Most models take the softmax in float32, whatever they are in.
            assert (outputs[place, row, real] - output).norm() / output.norm() < 1e-5
            assert torch.allclose(weights[place, row][:, real][..., real].double(), weight, atol=1e-5)
            if layer in valuation.layers and len(x) > 4:
                assert (plain[place, row, real] - output).norm() / output.norm() > 0.01


def test_attention_refuses_padding_in_float64() -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match="one text at a time"):
        model.attention(model.tokenize(TEXTS), [0])


def test_attention_runs_no_deeper_than_needed_and_cleans_up_after_an_error() -> None:
    model = tiny_model("llama")
    batch, ran = model.tokenize(TEXTS[0]), []
    handle = model._blocks[2].register_forward_pre_hook(lambda *_: ran.append(2))
    model.attention(batch, [1])
    assert not ran
    with handle:
        model.attention(batch, [2])
    assert ran
    broken = model._blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with broken, pytest.raises(ZeroDivisionError):
        model.attention(batch, [0, 2])
    assert model.underlying.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.underlying.modules())


# Words ---------------------------------------------------------------------------------------------------------------


def test_the_sentences_are_those_of_the_source() -> None:
    assert [" ".join(word.text for word in words) for words in SENTENCES.values()] == [
        "I'm extremly frustrated with your service. My order has been delayed for the third time without explanation.",
        "The brilliantly terrible movie had the audience laughing hysterically, though not for the reasons the director "
        "intended.",
    ]


def test_annotations_lie_in_their_ranges_and_every_word_has_its_group() -> None:
    words = [word for sentence in SENTENCES.values() for word in sentence]
    for word in words:
        assert -1 <= word.valence <= 1 and 0 <= word.arousal <= 1 and 0 <= word.relevance <= 1
        assert len(word.groups & {"content", "function"}) == 1
    assert {group for word in words for group in word.groups} == set(GROUPS)
    for sentence in SENTENCES.values():
        for group in GROUPS:
            assert any(group in word.groups for word in sentence)
    mapped = emotion_embeddings((Word("so", -0.5, 0.0, 1.0, frozenset()),))
    assert mapped.tolist() == [[-0.5, -1.0, 1.0]]
    assert emotion_embeddings((Word("so", -0.5, 0.0, 1.0, frozenset()),), mapped=False).tolist() == [
        [-0.5, 0, 1]
    ]


def test_words_are_found_among_tokens_by_their_characters() -> None:
    words = word_spans(["I'm", "sorry,", "(you)."])
    text = "I'm sorry, (you)."
    assert [text[start:end] for start, end in words] == ["I'm", "sorry", "you"]
    # Start token, "I", "'m", " so", "rry", ", (", "you", ")." ; then one token over the end of a word and a mark.
    tokens = [(0, 0), (0, 1), (1, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 17)]
    expected = [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0]]
    assert word_tokens(words, tokens).tolist() == expected
    # A token across two words belongs to the one that it shares most with.
    assert word_tokens([(0, 3), (4, 9)], [(0, 6), (6, 9)]).tolist() == [[1, 0], [0, 1]]


def test_magnitudes_are_summed_in_quadrature_and_attention_is_gathered() -> None:
    outputs = np.array([[[3.0, 0], [0, 4], [5, 12], [9, 9]]])
    weights = np.array([[[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.25, 0.75, 0], [0.25, 0.25, 0.25, 0.25]]]])
    belongs = np.array([[1.0, 1, 0, 0], [0, 0, 1, 0]])
    read = reading(outputs, weights, belongs)
    assert np.allclose(read.magnitudes, [[5, 13]])
    assert np.allclose(read.attention, [[1, 0], [0.25, 0.75]])
    third = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(3)
    assert np.allclose(read.evenness, (1 + third + 1) / 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_word_magnitudes_of_a_model_equal_a_computation_by_hand(family: str) -> None:
    """The whole road, with annotations in the attention: text, tokens, emotions, bias, output, words."""
    model = tiny_model(family)
    bench = Bench(model, (0, 1, 2))
    condition = bench.annotated(1, seed=0, mapped=True)[0]
    read = bench.read(condition, LAM)
    for name, words in SENTENCES.items():
        text = " ".join(word.text for word in words)
        batch = model.tokenize(text)
        owner = owners(text, batch.offsets[0])
        e = torch.zeros(len(owner), 3, dtype=torch.float64)
        for token, word in enumerate(owner):
            if word is not None:
                _, valence, arousal, relevance, _ = words[word]
                e[token] = torch.tensor([valence, 2 * arousal - 1, 2 * relevance - 1])
        v = torch.tanh(e)
        valuation = Valuation(torch.zeros(3, 3, WIDTH + 3), torch.zeros(3, 3), ("a", "b", "c"), (0, 1, 2))
        valuation.weight[:, :, WIDTH:] = torch.eye(3)
        with torch.no_grad(), inject(model, valuation, LAM, emotions=e[None]):
            streams = model.streams(batch, (0, 1, 2))[:, 0]
        for layer in range(BLOCKS):
            output, weights = attention_by_hand(model, layer, streams[layer], LAM * v @ v.T)
            for position in range(len(words)):
                tokens = [token for token, word in enumerate(owner) if word == position]
                assert read[name].magnitudes[layer, position] == pytest.approx(
                    float(output[tokens].norm()), rel=1e-5
                )
        entropy = -(weights * weights.clamp(min=1e-300).log()).sum(-1)[:, 1:]
        even = (entropy / torch.arange(2, len(owner) + 1).log()).mean()
        assert read[name].evenness[2] == pytest.approx(float(even), rel=1e-5)


def owners(text: str, offsets: tuple) -> list[int | None]:
    """The index of the word that each token's letters lie in, found letter by letter."""
    of_letter: list[int | None] = []
    for index, word in enumerate(text.split(" ")):
        letters = [index if c.isalnum() or c == "'" else None for c in word]
        of_letter += [*letters, None]
    result = []
    for start, end in offsets:
        inside = {of_letter[place] for place in range(start, end)} - {None}
        assert len(inside) < 2
        result.append(inside.pop() if inside else None)
    return result


# Controls ------------------------------------------------------------------------------------------------------------


def test_controls_keep_norms_or_the_annotations_themselves() -> None:
    given = emotion_embeddings(SENTENCES["review"])
    turned = study.turned(given, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(given, axis=1))
    assert not np.allclose(turned, given)
    shuffled = study.shuffled(given, np.random.default_rng(0))
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, given))
    assert not np.allclose(shuffled, given)
    conditions = Bench(tiny_model("gpt2"), (0,)).annotated(4, seed=0, mapped=True)
    again = Bench(tiny_model("gpt2"), (0,)).annotated(4, seed=0, mapped=True)
    emotions, same = ([given["review"].nan_to_num() for _, given in rows] for rows in (conditions, again))
    assert len({tuple(e.flatten().tolist()) for e in emotions}) == 5
    assert all(torch.equal(one, other) for one, other in zip(emotions, same, strict=True))


# Statistics and claims, constructed ----------------------------------------------------------------------------------

WORDS = (
    Word("bad", -1.0, 1.0, 1.0, frozenset({"content", "emotional"})),
    Word("glad", 1.0, 1.0, 1.0, frozenset({"content", "emotional"})),
    Word("though", 0.0, 0.0, 1.0, frozenset({"function", "turning"})),
    Word("the", 0.0, 0.0, 0.0, frozenset({"function"})),
)
BEFORE = Reading(np.array([[1.0, 2, 3, 4], [2.0, 2, 2, 4]]), np.eye(4), np.array([0.5, 0.7]))


def after(*rows: list[float], evenness: tuple[float, float] = (0.5, 0.7)) -> dict[str, float]:
    return statistics(WORDS, BEFORE, replace(BEFORE, magnitudes=np.array(rows), evenness=np.array(evenness)))


def test_nothing_changed_gives_zeros() -> None:
    assert set(after(*BEFORE.magnitudes.tolist()).values()) == {0.0}
    # ... and neither does a change of scale, layer by layer.
    scaled = after(*(BEFORE.magnitudes * [[3], [0.1]]).tolist())
    assert np.allclose(list(scaled.values()), 0)


def test_statistics_on_cases_worked_out_by_hand() -> None:
    # First layer: "though" takes 2 from "the", the mean stays 2.5; second layer as it was.
    found = after([1, 2, 5, 2], [2, 2, 2, 4])
    assert found["turning"] == pytest.approx(100 * (5 / 3 - 1) / 2)
    assert found["emotional"] == pytest.approx(0)
    assert found["rank, turning"] == pytest.approx(1 / 2)
    assert found["variation"] == pytest.approx(100 * (np.sqrt(2.25 / 1.25) - 1) / 2)
    assert found["evenness"] == 0
    # Both layers: "bad" loses half, "glad" nothing, relative to a mean that falls.
    found = after([0.5, 2, 3, 4], [1, 2, 2, 4])
    assert found["emotional"] == pytest.approx(
        100 * ((0.5 / 2.375) / (1 / 2.5) + (1 / 2.25) / (2 / 2.5) - 2) / 2
    )
    assert after([1, 2, 3, 4], [2, 2, 2, 4], evenness=(0.4, 0.7))["evenness"] == pytest.approx(-5)
    assert np.allclose(variation(BEFORE.magnitudes), [np.sqrt(1.25) / 2.5, np.sqrt(0.75) / 2.5])
    assert np.allclose(gains(np.array([[1.0, 1]]), np.array([[3.0, 1]])), [[0.5, -0.5]])
    assert rank_shifts(np.array([[1.0, 2, 3]]), np.array([[3.0, 2, 1]])).tolist() == [[2, 0, -2]]


TRUE = {
    "word magnitudes vary more": after([0.1, 2, 3, 6], [1, 2, 2, 7]),
    "words that turn a sentence gain": after([1, 2, 9, 4], [2, 2, 5, 4]),
    "a plainly emotional word loses": after([0.1, 2, 3, 4], [0.2, 2, 2, 4]),
    "standard attention is more uniform": after([1, 2, 3, 4], [2, 2, 2, 4], evenness=(0.3, 0.6)),
}
FALSE = {
    "word magnitudes vary more": after([2, 2, 3, 3], [2, 2, 2, 2]),
    "words that turn a sentence gain": after([1, 2, 1, 4], [2, 2, 1, 4]),
    "a plainly emotional word loses": after([3, 3, 3, 4], [5, 4, 2, 4]),
    "standard attention is more uniform": after([1, 2, 3, 4], [2, 2, 2, 4], evenness=(0.6, 0.8)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_shows_where_it_is_true_and_only_there(claim: str) -> None:
    statistic, sign = CLAIMS[claim]
    near = np.array([-0.1, 0.0, 0.1])
    assert shows(TRUE[claim][statistic], near, sign) == "yes"
    assert shows(FALSE[claim][statistic], near, sign) == "no"
    # ... and where controls do as much, it is undecided; where they all do more, it is no finding either.
    value = TRUE[claim][statistic]
    assert shows(value, np.array([0.5 * value, 2 * value]), sign) == "undecided"
    assert shows(value, np.array([2 * value, 3 * value]), sign) == "no"


def test_no_effect_shows_nothing() -> None:
    for sign in (1, -1):
        assert shows(0.0, np.zeros(3), sign) == "no"


def test_a_valuation_is_judged_by_its_controls_only_and_by_the_mean_of_the_sentences() -> None:
    random = np.random.default_rng(0)
    standard = {
        name: Reading(1 + random.random((2, len(words))), np.eye(len(words)), np.ones(2))
        for name, words in SENTENCES.items()
    }
    spread = {name: replace(part, magnitudes=part.magnitudes**3) for name, part in standard.items()}
    claims = _claims(_summary(standard, {("made up", 1.0): [spread, standard, standard]})).set_index("claim")
    varies = claims.loc["word magnitudes vary more"]
    assert varies["shows"] == "yes" and varies["value"] > 100
    assert varies["value"] == pytest.approx((varies["complaint"] + varies["review"]) / 2)
    assert varies["control_low"] == varies["control_high"] == 0
    assert claims.loc["standard attention is more uniform", "shows"] == "no"


# The experiment ------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the sweep of λ, where it is not what is tested."""
    monkeypatch.setattr("emoprobe.study.sentences.SWEEP", (1.0,))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_comparison_runs_on_every_family(family: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    untouched = model.logits(TEXTS)
    probed = make_valuation(model)
    compared = compare_sentences(model, probed, controls=2)
    assert torch.equal(model.logits(TEXTS), untouched)
    assert compared.layers == probed.layers  # only where both can act
    assert set(compared.readings) == {"standard", "annotated", "unmapped", "probed"}
    assert len(compared.claims) == 3 * len(SWEEP) * len(CLAIMS)
    assert len(compared.groups) == 3 * len(GROUPS)
    assert len(compared.words) == 4 * 2 * sum(map(len, SENTENCES.values()))
    assert len(compared.variation) == 3 * 2 * 2
    assert np.isfinite(compared.claims.select_dtypes("number").to_numpy()).all()
    assert (compared.claims["control_low"] <= compared.claims["control_high"]).all()
    assert set(compared.claims["shows"]) <= {"yes", "no", "undecided"}
    standard = compared.words[compared.words["condition"] == "standard"]
    assert not standard["gain"].any() and not standard["rank_shift"].any()
    changed = compared.words[compared.words["condition"] == "annotated"]
    assert (changed["gain"].abs() > 0.01).any()
    layer = compared.variation.query("sentence == 'review' and layer == 2 and valuation == 'probed'").iloc[0]
    magnitudes = compared.words.query(
        "sentence == 'review' and layer == 2 and condition == 'probed'"
    ).magnitude
    assert layer["value"] == pytest.approx(magnitudes.std(ddof=0) / magnitudes.mean())


def test_the_result_says_what_the_tables_say(short: None) -> None:
    model = tiny_model("gpt2")
    compared = compare_sentences(model, make_valuation(model), controls=2)
    assert compared.untouched
    result = replace(compared, untouched=False).result()
    assert list(result.checks.values()) == [False, True] and not result.passed
    stated = compared.claims.query("strength == 1")
    assert (
        result.finding.startswith("of 4 claims each, ") and "two sentences give no interval" in result.finding
    )
    changes = compared.claims.query("valuation == 'annotated' and claim == 'word magnitudes vary more'")
    for value in changes[changes.strength == 1][[*SENTENCES, "value"]].iloc[0]:
        assert f"{number(value, 1, True)} %" in result.finding
    assert "2 control valuations" in result.controls and "by chance in 1 of 3" in result.controls
    assert list(result.parts) == list(CLAIMS)
    assert sum(result.parts.values()) == sum(stated[stated["valuation"] == "annotated"]["shows"] == "yes")
    assert "each with a chance of at most 1 in 3" in result.verdict
    for family in ("annotated", "unmapped", "probed"):
        claims = stated[stated["valuation"] == family]
        assert f"{sum(claims['shows'] == 'yes')} hold with {family}" in result.finding
        said = result.verdict.split(f"With {family} valuations: ")[1].split(".")[0]
        for claim, verdict in zip(claims["claim"], claims["shows"], strict=True):
            word = {"yes": "shows", "no": "does not show", "undecided": "undecided"}[verdict]
            assert f"{claim} ({word}" in said
    assert f"In all {sum(stated['shows'] == 'yes')} of 12 claims show, and 4.0 would" in result.verdict
    assert "two data points" in result.verdict and "Marín" in result.method
    for word in ("frustrated", "hysterically,", "without"):
        assert f">{word}</text>" in result.svg


def test_controls_of_a_probed_valuation_are_other_valuations_of_its_norm(
    monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    model, weights = tiny_model("gpt2"), []
    probed, read = make_valuation(model), Bench.read

    def watched(bench: Bench, condition: Any = None, strength: float = 0.0) -> dict:
        if condition is not None and condition[1] is None:
            weights.append(condition[0].weight)
        return read(bench, condition, strength)

    monkeypatch.setattr(Bench, "read", watched)
    compare_sentences(model, probed, controls=3)
    first, *controls = weights
    assert torch.equal(first, probed.weight) and len(controls) == 3
    for row, control in enumerate(controls):
        assert torch.allclose(control.norm(dim=-1), first.norm(dim=-1), rtol=1e-5)
        assert all(
            torch.cosine_similarity(control, other, dim=-1).abs().max() < 0.9
            for other in (first, *controls[:row])
        )


def test_strength_zero_changes_nothing_at_all() -> None:
    compared = compare_sentences(tiny_model("llama"), strength=0.0, controls=1)
    for name in SENTENCES:
        one, other = compared.readings["standard"][name], compared.readings["annotated"][name]
        assert np.array_equal(one.magnitudes, other.magnitudes)
        assert np.array_equal(one.attention, other.attention)
    assert compared.untouched
    assert set(compared.claims["shows"]) == {"no"}


def test_the_same_seed_gives_the_same_controls_and_another_others(short: None) -> None:
    model = tiny_model("gpt2")
    one, two, other = (compare_sentences(model, controls=2, seed=seed).claims for seed in (0, 0, 1))
    assert one.equals(two)
    assert one["value"].equals(other["value"]) and not one["control_low"].equals(other["control_low"])


def test_bad_input_is_answered_in_one_line() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="controls=0"):
        compare_sentences(model, controls=0)
    with pytest.raises(InputError, match="block 3 does not exist"):
        compare_sentences(model, layers=3)
    with pytest.raises(InputError, match=r"none of the layers asked for: it has \[0, 2\]"):
        compare_sentences(model, make_valuation(model), layers=1)


def test_probes_for_the_three_dimensions_are_used_where_there_are_any(short: None) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    texts = [
        "I am glad that you came",
        "The dog had run away",
        "They were afraid of the dark",
        "He felt calm",
    ] * 3
    columns = {
        "text": [f"{text} {number}" for number, text in enumerate(texts)],
        "labels": [["up"], ["down"], ["down"], ["up"]] * 3,
        "valence": [0.9, -0.5, -0.8, 0.3] * 3,
        "dominance": [0.5, 0.2, 0.1, 0.7] * 3,
    }
    corpus = Corpus.from_columns(columns, dimensions={"valence": (-1.0, 1.0), "dominance": (0.0, 1.0)})
    probes = fit_probes(model, corpus, folds=2, permutations=0, bootstrap=0, progress=False)
    result = sentences(model, probes, controls=1)
    claims = result.table[result.table["valuation"] == "probed"]
    assert len(claims) == len(CLAIMS) + len(GROUPS)
    expected = compare_sentences(model, Valuation.from_probes(probes, ["valence"]), controls=1).claims
    rows = expected[expected["valuation"] == "probed"]
    assert claims["value"].tolist()[: len(rows)] == rows["value"].tolist()
    only_labels = fit_probes(
        model, corpus, concepts=["up", "down"], folds=2, permutations=0, bootstrap=0, progress=False
    )
    assert "probed" in set(sentences(model, only_labels, controls=1).table["valuation"])
