"""The prose models' training: which texts, which tokens, the same losses again, and the figures beside them."""

import csv
import json
import lzma
import math
import random
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoprobe.errors import InputError
from emoprobe.models.byte_level import BOS, EOS, PAD
from emoprobe.models.prose import evaluate, train
from emoprobe.models.prose.corpus import STORIES, Document, held_out_documents, train_documents
from emoprobe.models.prose.ngrams import KneserNey
from emoprobe.models.prose.tokens import VOCABULARY, read_tokens

TINY = train.Size(16, 2, 2, 1, 32, context=16, batch=4, peak=1e-2)
BOOKS = [  # author, died, split, a word that only this book has
    ("Old Author", 1870, "train", "quizzical"),
    ("Last Author", 1954, "train", "brougham"),
    ("Late Author", 1955, "train", "wireless"),
    ("Held Out", 1900, "validation", "zephyrous"),
    ("Tested", 1900, "test", "gramophone"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in the published form: a few small books, two files of stories."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    words = "the a old sad glad man woman house said ran “I do not know,” was and of in don't … naïve — two".split()

    def text(word: str) -> str:
        return (
            "\n\n".join(" ".join([*rng.choices(words, k=rng.randrange(3, 40)), word]) for _ in range(60))
            + "\nthe end"
        )

    (folder / "fiction").mkdir()
    (folder / "tinystories").mkdir()
    with (folder / "fiction" / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "author", "author_died", "split"])
        rows.writerows([word, author, died, split] for author, died, split, word in BOOKS)
    with lzma.open(folder / "fiction" / "books.jsonl.xz", "wt", encoding="utf-8") as file:
        for author, _, split, word in BOOKS:
            file.write(json.dumps({"id": word, "author": author, "split": split, "text": text(word)}) + "\n")
    for name in (*STORIES, "wikitext_1000.json"):
        (folder / "tinystories" / name).write_text(json.dumps([f" One day, {name}. ", "They ran."]))
    return folder


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tokenizer and the tokenised corpus."""
    out = tmp_path_factory.mktemp("out")
    train.prepare(data, out)
    return out


def trained(folder: Path, seed: int = 0, checkpoint: Path | None = None, resume: bool = False) -> train.Run:
    """A run of fourteen steps of the tiny model, with a checkpoint every four seconds of the clock in use."""
    run = train.new_run(train.new_model(TINY, Tokenizer.from_file(str(folder / "tokenizer.json")), seed))
    if resume and checkpoint:
        run.load(checkpoint)
    tokens, held_out = (read_tokens(folder / f"{name}.bin") for name in ("train", "validation"))
    train.train(run, tokens, held_out, TINY, seed=seed, steps=14, checkpoint=checkpoint, every=4)
    return run


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by a second whenever it is read, which training does once a step."""
    ticks = count()
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def test_reads_training_authors_who_died_before_1955_and_stories(data: Path) -> None:
    documents = list(train_documents(data))
    assert [d.author for d in documents] == ["Old Author", "Last Author", *["TinyStories"] * 4]
    assert [d.text for d in documents[2:]] == [
        f"One day, {STORIES[0]}.",
        "They ran.",
        f"One day, {STORIES[1]}.",
        "They ran.",
    ]
    assert [d.author for d in held_out_documents(data)] == ["Held Out"]
    assert [d.author for d in held_out_documents(data, "test")] == ["Tested"]


def test_corpus_errors_name_file_and_split(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.csv.*--data"):
        list(train_documents(tmp_path))
    with pytest.raises(InputError, match="'train' is not held out"):
        list(held_out_documents(data, "train"))


def test_tokenizer_learns_from_training_books_only(prepared: Path) -> None:
    entries = set(Tokenizer.from_file(str(prepared / "tokenizer.json")).get_vocab())
    assert {"Ġquizzical", "Ġbrougham", BOS, EOS, PAD} <= entries
    assert not {"Ġwireless", "Ġzephyrous", "Ġgramophone"} & entries


def test_token_file_holds_every_document_and_paragraph(data: Path, prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    tokens, documents = read_tokens(prepared / "train.bin"), list(train_documents(data))
    assert tokens.ids.dtype == np.uint16
    assert tokens.characters == sum(len(d.text) for d in documents)
    text = tokenizer.decode(tokens.ids.tolist(), skip_special_tokens=False)
    assert text == "".join(d.text + EOS for d in documents)
    ends = [*tokens.starts[1:].tolist(), len(tokens.ids)]
    parts = [tokenizer.decode(tokens.ids[a:b].tolist()) for a, b in zip(tokens.starts, ends, strict=True)]
    assert [part.removesuffix("\n\n") for part in parts] == [
        p for d in documents for p in d.text.split("\n\n")
    ]


def test_whole_texts_have_the_tokens_of_their_paragraphs(data: Path, prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    whole = [tokenizer.encode(d.text, add_special_tokens=False).ids for d in train_documents(data)]
    eos = tokenizer.token_to_id(EOS)
    assert [i for ids in whole for i in [*ids, eos]] == read_tokens(prepared / "train.bin").ids.tolist()
    assert tokenizer.encode("the man").ids[0] == tokenizer.token_to_id(BOS)


def test_windows_start_at_paragraphs_where_they_can(prepared: Path) -> None:
    tokens = read_tokens(prepared / "train.bin")
    starts = set(tokens.starts.tolist())
    for i, place in enumerate(train.windows(tokens, 16)):
        stretch = range(16 * i, 16 * i + 16)
        assert place == next((p for p in stretch if p in starts), stretch.start)
        assert place + 16 <= len(tokens.ids)
    with pytest.raises(InputError, match="too few for a window of 100000"):
        train.windows(tokens, 100_000)


def test_batches_follow_from_seed_and_step(prepared: Path) -> None:
    tokens = read_tokens(prepared / "train.bin")
    places = train.windows(tokens, TINY.context)
    per_pass = len(places) // TINY.batch
    from_start = train.batches(tokens, TINY, bos=0, seed=3)
    passes = [[next(from_start) for _ in range(per_pass)] for _ in range(2)]
    assert not torch.equal(torch.cat(passes[0]), torch.cat(passes[1]))
    for one in passes:  # no window twice in a pass
        read = Counter(tuple(row.tolist()) for row in torch.cat(one))
        known = Counter((0, *tokens.ids[place : place + 16].tolist()) for place in places)
        assert read <= known and sum(read.values()) == per_pass * TINY.batch
    later = train.batches(tokens, TINY, bos=0, seed=3, step=per_pass + 5)
    assert torch.equal(next(later), passes[1][5])
    assert not torch.equal(next(train.batches(tokens, TINY, bos=0, seed=4)), passes[0][0])


def test_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    rates = [train.learning_rate(i / 1000) for i in range(1100)]
    assert rates[0] == rates[-1] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[10] == pytest.approx(0.51)  # half of the warm-up, which is a fiftieth of the run
    assert rates[500] == pytest.approx(0.51)  # half of the cosine
    assert np.argmax(rates) in range(18, 23)


def test_same_seed_gives_same_losses(prepared: Path) -> None:
    first, again, other = trained(prepared), trained(prepared), trained(prepared, seed=1)
    assert first.losses == again.losses
    assert first.losses != other.losses
    assert sum(first.losses[-4:]) < sum(first.losses[:4]) - 0.4


@pytest.mark.usefixtures("ticking")
def test_killed_run_resumes_to_the_same_curve(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(prepared, checkpoint=tmp_path / "whole.safetensors")
    path, step, seen = tmp_path / "killed.safetensors", train._step, []

    def dying(run: train.Run, ids: torch.Tensor, rate: float) -> float:
        seen.append(ids)
        if len(seen) == 11:
            raise KeyboardInterrupt
        return step(run, ids, rate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_step", dying)
        trained(prepared, checkpoint=path)
    resumed = trained(prepared, checkpoint=path, resume=True)
    assert resumed.losses == whole.losses and len(whole.losses) == 14
    assert [row[0] for row in resumed.validation] == [row[0] for row in whole.validation] == [4, 8, 12, 14]
    with safe_open(tmp_path / "whole.safetensors", "pt") as one, safe_open(path, "pt") as other:
        assert set(one.keys()) == set(other.keys())
        for name in one.keys():
            if name not in ("seconds", "validation"):  # the clock went on between the two
                assert torch.equal(one.get_tensor(name), other.get_tensor(name)), name
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.usefixtures("ticking")
def test_run_of_minutes_ends_its_schedule_with_its_time(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.new_run(train.new_model(TINY, Tokenizer.from_file(str(prepared / "tokenizer.json")), 0))
    rates: list[float] = []
    monkeypatch.setattr(train, "_step", lambda run, ids, rate: rates.append(rate) or 1.0)
    tokens = read_tokens(prepared / "train.bin")
    train.train(run, tokens, tokens, TINY, minutes=2.0)
    assert len(run.losses) == 120  # a step a second
    assert rates[-1] == pytest.approx(0.02 * TINY.peak, rel=0.02)
    assert max(rates) == pytest.approx(TINY.peak, rel=0.01)
    for length in ({}, {"steps": 3, "minutes": 1.0}):
        with pytest.raises(InputError, match="either the steps or the minutes"):
            train.train(run, tokens, tokens, TINY, **length)


def test_checkpoint_of_another_size_is_refused(prepared: Path, tmp_path: Path) -> None:
    trained(prepared, checkpoint=tmp_path / "run.safetensors")
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    wider = train.new_run(train.new_model(TINY._replace(inner=48), tokenizer, 0))
    with pytest.raises(InputError, match=r"run\.safetensors is a checkpoint of another size"):
        wider.load(tmp_path / "run.safetensors")


@pytest.mark.parametrize(
    ("name", "least", "most", "megabytes"), [("prose", 7e6, 8e6, 15), ("prose-small", 2e6, 3e6, 6)]
)
def test_sizes_are_within_their_limits(name: str, least: float, most: float, megabytes: float) -> None:
    entries = {word: i for i, word in enumerate([BOS, EOS, PAD, *map(str, range(VOCABULARY - 3))])}
    model = train.new_model(train.SIZES[name], Tokenizer(WordLevel(entries, unk_token=PAD)), 0)
    count = sum(p.numel() for p in model.parameters())
    assert least <= count <= most
    assert 2 * count < megabytes * 1e6 - 10_000  # two bytes each, and the header
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert train.SIZES[name].width % train.SIZES[name].heads == 0


def test_command_trains_saves_and_resumes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(train.SIZES, "prose-small", TINY)
    given = ["train", "--size", "prose-small", "--data", str(data), "--out", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*given, "--steps", "3", "--threads", "1"])
    precision = torch.get_float32_matmul_precision()
    try:
        train.main()
        monkeypatch.setattr(sys, "argv", [*given, "--steps", "5", "--threads", "1", "--resume"])
        train.main()
        assert "5 steps" in capsys.readouterr().out
        with pytest.raises(SystemExit):  # no run is written over
            monkeypatch.setattr(sys, "argv", [*given, "--steps", "3", "--threads", "1"])
            train.main()
        assert "--resume" in capsys.readouterr().err
    finally:
        torch.set_float32_matmul_precision(precision)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (
        tokenizer.decode(tokenizer("the “naïve” man")["input_ids"], skip_special_tokens=True)
        == "the “naïve” man"
    )
    assert "\n" not in (tmp_path / "model" / "tokenizer.json").read_text("utf-8")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert len(json.loads((tmp_path / "model" / "training.json").read_text())["losses"]) == 5
    assert len(evaluate.samples(model, tokenizer, length=3)) == len(evaluate.OPENINGS)


def test_watched_bits_per_character_of_a_model_that_knows_nothing(prepared: Path) -> None:
    tokenizer, held_out = (
        Tokenizer.from_file(str(prepared / "tokenizer.json")),
        read_tokens(prepared / "validation.bin"),
    )
    model = train.new_model(TINY, tokenizer, 0)
    torch.nn.init.zeros_(model.lm_head.weight)
    expected = math.log2(tokenizer.get_vocab_size()) * len(held_out.ids) / held_out.characters
    assert train.bits_per_character(model, held_out, TINY) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("length", [1, 9, 16, 17, 40, 57])
def test_evaluation_scores_each_token_once_after_half_a_window_or_more(prepared: Path, length: int) -> None:
    model = train.new_model(TINY, Tokenizer.from_file(str(prepared / "tokenizer.json")), 0).eval()
    ids = read_tokens(prepared / "validation.bin").ids[:length]
    found = evaluate.log_probs(model, ids, context=16, first=0, batch=2)
    assert found.shape == (length,)
    for i in range(length):
        start = max(
            0, (i - 8) // 8 * 8
        )  # windows lie 8 apart; the one is meant in whose second half the token is
        row = torch.tensor([[0, *ids[start : i + 1].tolist()]])
        with torch.no_grad():
            expected = model(input_ids=row[:, :-1]).logits[0, -1].log_softmax(-1)[row[0, -1]]
        assert found[i] == pytest.approx(expected.item(), abs=1e-5)


def test_bits_per_character_weighs_authors_by_their_characters() -> None:
    documents = [Document("A", "abcd"), Document("B", "ab"), Document("A", "ab")]
    bits = evaluate.bits_per_character(
        lambda text: np.log([{4: 0.25, 2: 0.5}[len(text)]] * len(text)), documents
    )
    assert bits == pytest.approx({"all": (8 + 2 + 2) / 8, "A": (8 + 2) / 6, "B": 1.0})
    assert (
        evaluate.table({"one": {"all": 1.5, "A": 1.25}})
        == "| author | one |\n|---|---:|\n| all | 1.500 |\n| A | 1.250 |"
    )


def by_hand(ids: list[int], vocabulary: int, order: int, history: tuple[int, ...], token: int) -> float:
    """Modified Kneser–Ney as Chen & Goodman write it, one dictionary per order, in a ring of tokens."""
    grams = {n: [tuple((ids + ids)[i : i + n]) for i in range(len(ids))] for n in range(1, order + 1)}

    def counted(n: int) -> Counter[tuple[int, ...]]:
        return Counter(grams[n]) if n == order else Counter(gram[1:] for gram in set(grams[n + 1]))

    def probability(n: int, history: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / vocabulary
        lower = probability(n - 1, history[1:])
        counts = counted(n)
        after = {gram: c for gram, c in counts.items() if gram[:-1] == history}
        if not after:
            return lower
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        taken = {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2, 3: 3 - 4 * y * n4 / n3}
        total = sum(after.values())
        own = after.get((*history, token), 0)
        freed = sum(taken[min(c, 3)] for c in after.values())
        return ((own - taken[min(own, 3)] if own else 0) + freed * lower) / total

    return probability(order, history)


def test_kneser_ney_is_chen_and_goodmans() -> None:
    rng = random.Random(1)
    ids = [int(200 * rng.random() ** 3) for _ in range(2_000)]
    model = KneserNey(np.array(ids, np.uint16), 200, order=3)
    for history in ((0, 0), (1, 3), (2, 9), (190, 180), (25, 0)):
        each = np.exp([model.log_probs(np.array([*history, token]))[-1] for token in range(200)])
        assert each.sum() == pytest.approx(1, abs=1e-6)
        for token in (0, 1, 7, 199):
            assert each[token] == pytest.approx(by_hand(ids, 200, 3, history, token), rel=1e-6)


def test_kneser_ney_foresees_what_repeats() -> None:
    ids = np.tile(np.arange(10), 50)
    model = KneserNey(ids, 20)
    assert np.exp(model.log_probs(ids)[5:]).min() > 0.5
    assert np.exp(model.log_probs(np.array([15, 16]))).max() < 0.1
