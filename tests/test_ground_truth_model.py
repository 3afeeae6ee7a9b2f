"""The ground-truth model: small, complete, trained reproducibly, and really able to infer what its texts were made from."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoprobe.corpora.generator import EMOTIONS, WORLDS, aftermaths, generate
from emoprobe.models.ground_truth import FOLDER, evaluate
from emoprobe.models.ground_truth.evaluate import (
    NAMES,
    SINGLE,
    Bench,
    all_aftermaths,
    by_text,
    components,
    interval,
)
from emoprobe.models.ground_truth.train import AHEAD, NOTHING, batches, documents, foreseen, new_model, train


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def test_the_files_are_few_and_small() -> None:
    files = {
        f.name: f.stat().st_size for f in FOLDER.iterdir() if f.suffix in {".json", ".safetensors", ".md"}
    }
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "evaluation.json",
        "MODEL_CARD.md",
    }
    assert sum(files.values()) <= 4_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float32"


def test_it_loads_without_a_network_and_computes_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert model.dtype == torch.float32 and model.config.model_type == "llama"
    assert model.config.num_key_value_heads < model.config.num_attention_heads  # grouped queries
    assert 1_000_000 < model.num_parameters() < 2_000_000
    ids = tokenizer("Ωμέγα, naïve — 漢字 🙂\n")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token is None
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Ωμέγα, naïve — 漢字 🙂\n"
    padded = tokenizer(["Maya ran.", "Maya ran up the stairs."], padding=True, return_tensors="pt")
    assert padded["attention_mask"].min() == 0
    said = model.generate(**padded, max_new_tokens=150, do_sample=False)
    assert (said == tokenizer.eos_token_id).any()  # a story ends


def test_scores_of_continuations_are_those_of_the_whole_text(bench: Bench) -> None:
    """The cached, batched score against the model run once, without a cache, on text and continuation together."""
    text, tails = "Maya saw the boat.", ["Later Maya ran.", "Once home, Maya slept well until midnight."]
    for tail, score in zip(tails, bench.log_probs(text, tails)[0], strict=True):
        ids = bench.tokenizer(f"{text} {tail}", return_tensors="pt")["input_ids"]
        start = len(bench.tokenizer(text)["input_ids"])
        with torch.no_grad():
            each = bench.model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[start - 1 :]
        assert score == pytest.approx(each.mean().item(), abs=1e-5)


def test_an_aftermath_is_likelier_after_the_right_context_than_after_a_wrong_one(bench: Bench) -> None:
    texts = generate(len(EMOTIONS) * 2, seed=11, forms=SINGLE, worlds=WORLDS[:2])
    scores = np.stack(
        [
            bench.log_probs(t.text, all_aftermaths(t.experiencer, t.intensity))[0].reshape(len(NAMES), -1)
            for t in texts
        ]
    ).mean(-1)
    truth = np.array([NAMES.index(t.emotion) for t in texts])
    right = scores[np.arange(len(texts)), truth]
    for world in WORLDS[:2]:
        here = np.array([t.world == world for t in texts])
        wrong = scores[here][:, truth[here]][~np.eye(here.sum(), dtype=bool)]
        assert right[here].mean() - wrong.mean() > 0.4  # nats a token
    assert (scores.argmax(1) == truth).mean() > 0.9


def test_an_untrained_model_does_not_know(bench: Bench) -> None:
    """The control of the test above: neither the scoring nor the wording gives the emotion away."""
    idle = Bench()
    idle.model = new_model(idle.tokenizer, seed=0).eval()
    texts = generate(26, seed=11, forms=SINGLE)
    said = [
        idle.log_probs(t.text, all_aftermaths(t.experiencer))[0].reshape(len(NAMES), -1).mean(1).argmax()
        for t in texts
    ]
    assert np.mean([NAMES[s] == t.emotion for s, t in zip(said, texts, strict=True)]) < 0.25


def test_valence_and_arousal_lead_the_components_of_late_layers_and_not_of_the_embedding(
    bench: Bench,
) -> None:
    texts = generate(390, seed=12, forms=SINGLE)
    pools, emotions = bench.pooled([t.text for t in texts])[0], np.array([t.emotion for t in texts])
    r, _ = components(pools[:, 5], emotions)
    assert r[0].argmax() == 0 and r[0, 0] > 0.85 and r[1].argmax() in (1, 2) and r[1].max() > 0.7
    shuffled = components(pools[:, 5], np.random.default_rng(0).permutation(emotions))[0]
    assert max(shuffled[0, 0], components(pools[:, 0], emotions)[0][0, 0]) < 0.7


def test_the_card_quotes_what_was_measured() -> None:
    found = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in card.splitlines() if line.startswith("| ")][1:]
    measured = [
        ("nats per aftermath token, wrong minus right context", "texts"),
        ("accuracy of choosing the emotion by its aftermaths (chance 0.077)", "texts"),
        ("own aftermath preferred to the other person's (chance 0.5)", "texts with two people"),
    ]
    for (question, figures), (name, count) in zip(rows, measured, strict=True):
        assert f"{found[count]} texts" in question
        for quoted, value in zip(re.findall(r"\d+\.\d+", figures), found[name], strict=True):
            assert float(quoted) == pytest.approx(value, abs=0.51 * 10 ** -len(quoted.split(".")[1]))
    layers = found["accuracy over 13 emotions and valence r, worlds held out"]
    assert layers["layer 3"][0] > 0.95 > 0.2 > max(layers["layer 0"][0], layers["tf-idf words"][0])
    assert found[measured[2][0]][1] > 0.85  # without binding 0.5
    axes = found["|r| of the first five components of emotions with their valence and arousal"]
    last, highest = axes["layer 6"], "highest in shuffled sets (valence, arousal)"
    quoted = [last["valence"][0], last["arousal"][1], *last[highest]]
    quoted += [max(axes["layer 0"][name]) for name in ("valence", "arousal")]
    said = re.findall(
        r"\d\.\d\d", next(part for part in card.split("\n\n") if part.startswith("Valence and"))
    )
    assert [float(value) for value in said] == pytest.approx(quoted, abs=0.0051)
    assert min(quoted[:2]) > max(quoted[2:])


def test_intervals_are_over_texts_and_exact_where_all_are_right() -> None:
    assert interval(np.ones(260)) == pytest.approx((1.0, 0.025 ** (1 / 260), 1.0))
    assert interval(np.zeros(260)) == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 260)))
    half = np.repeat([0.0, 1.0], 200)
    assert interval(half) == pytest.approx((0.5, 0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    # Where one person is preferred the other is not, a text says nothing but 0.5, and says it surely.
    assert by_text([True, False] * 130).tolist() == [0.5] * 130
    assert interval(by_text([True, False] * 130)) == (0.5, 0.5, 0.5)


def test_a_text_with_two_people_counts_once(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    seen = []
    monkeypatch.setattr(evaluate, "interval", lambda values: seen.append(values) or (0.0, 0.0, 0.0))
    found = evaluate.binding(bench, n=5)
    assert found["texts with two people"] == 5
    assert [len(values) for values in seen] == [5, 5] and set(np.concatenate(seen)) <= {0.0, 0.5, 1.0}


def test_edits_reach_the_text_and_only_their_own_copy(bench: Bench) -> None:
    text, tails = "Maya saw the boat.", list(aftermaths("fear", "Maya"))
    plain = bench.log_probs(text, tails)
    edit = 3 * torch.ones(128)  # about as long as the stream that enters block 3
    with bench.editing(3, torch.stack([torch.zeros(128), edit])):
        edited = bench.log_probs(text, tails, copies=2)
    assert np.allclose(edited[0], plain[0], atol=1e-5) and not np.allclose(edited[1], plain[0], atol=1e-2)
    assert np.array_equal(bench.log_probs(text, tails), plain)


def test_training_twice_from_one_seed_is_the_same_and_from_another_not(bench: Bench) -> None:
    first, losses = train(bench.tokenizer, seed=0, steps=4, batch=8)
    second, again = train(bench.tokenizer, seed=0, steps=4, batch=8)
    assert losses == again and losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert train(bench.tokenizer, seed=1, steps=4, batch=8)[1] != losses


def test_what_is_to_be_foreseen_are_the_words_that_follow_about_that_person(bench: Bench) -> None:
    for _, document in zip(range(300), documents(0), strict=False):
        for start, end, words in document.ahead:
            assert re.fullmatch(r"[A-Z].*\.", document.text[start:end].strip())
            assert len(words) == len(AHEAD)
            for word, kind in zip(words, AHEAD, strict=True):
                assert word in kind and re.search(rf"\b{word}\b", document.text[end:])
            # All words of the mood stand in one sentence; where there are two people, it is about the one of the span.
            told = document.text[end:].split(". ")
            moods = [sentence for sentence in told if all(f" {word}" in sentence for word in words[1:])]
            people = {"I" if w.lower() == "my" else w for w in re.findall(r"\w+", document.text[start:end])}
            one = len({words for *_, words in document.ahead}) == 1
            assert any(one or mood.split()[0] in people for mood in moods), document
    kinds = foreseen(bench.tokenizer)
    ids, ahead = next(batches(bench.tokenizer, seed=0, size=8))
    assert ahead.shape == (*ids.shape, len(kinds))
    for row, targets in zip(ids, ahead, strict=True):
        assert ((targets == NOTHING).all(-1) == (targets == NOTHING).any(-1)).all()
        for place in (targets[:, 0] != NOTHING).nonzero():
            for tokens, target in zip(kinds, targets[place][0], strict=True):
                assert tokens[target] in row[place + 1 :].tolist()
