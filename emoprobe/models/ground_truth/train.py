"""Train the ground-truth model from a seed: tokenizer, Llama-architecture weights, files.

    python -m emoprobe.models.ground_truth.train --out DIR --seed 0 --steps 1500 --batch 32
    python -m emoprobe.models.ground_truth.train --out DIR --seed 0 --minutes 6 --device cuda

The data are the texts of `emoprobe.corpora.generator` with their aftermaths, generated on the way, no document twice.
Nothing here knows of probes or steering; what the model is worth is measured in `evaluate.py`.
"""

import argparse
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import pre_tokenizers
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emoprobe.corpora.generator import EMOTIONS, SCALES, GeneratedText, aftermaths, felt, generate, mood
from emoprobe.errors import InputError
from emoprobe.models.byte_level import train_bpe, wrapped

CONTEXT = 512
CHUNK = 64  # batches made at a time, so that texts of one length share a batch
VERBS = tuple(
    sorted({clause.split()[2] for emotion in EMOTIONS for clause in aftermaths(emotion)})
)  # "Afterwards I …"
AHEAD = (VERBS, *SCALES.values())  # the kinds of words to be foreseen: one of each follows about each person
WORKERS = 6  # processes that make batches for a GPU
WARM_UP = 0.04  # of the whole run
NOTHING = -100  # PyTorch's mark of a position that has no target


@dataclass(frozen=True)
class Document:
    """One training text; in each span (start, end, words) of it, a word of each kind in `AHEAD` is to be foreseen."""

    text: str
    ahead: tuple[tuple[int, int, tuple[str, ...]], ...] = ()


def documents(seed: int, part: int = 0, parts: int = 1) -> Iterator[Document]:
    """Yield training documents without end: mostly a text with its aftermath, now and then something less tidy.

    Processes that share the work each take a `part` of so many `parts`; no two of them make the same document.

    One in seven is a pair of documents, an aftermath before its cause, or starts in mid-sentence, so that the model
    is not lost in other places than the beginning of a story.
    """
    rng = random.Random(seed + 7_919 * part)
    for chunk in range(part, 1_000_000, parts):
        # Evaluation takes small seeds; these never coincide with them.
        start = 10_000_000 * (seed + 1) + 2 * chunk
        texts = generate(1_300, seed=start, forms=("first", "third")) + generate(
            1_300, start + 1, forms=("pair",)
        )
        made = [_document(text, rng) for text in rng.sample(texts, len(texts))]
        for document, following in zip(made, made[1:] + made[:1], strict=True):
            draw, text = rng.random(), document.text
            if draw < 0.05:
                yield Document(f"{text} {following.text}")
            elif draw < 0.10:
                yield Document(text[text.index(" ", rng.randrange(len(text) // 2)) + 1 :])
            else:
                yield document


def _document(text: GeneratedText, rng: random.Random) -> Document:
    moods = [mood(felt(text.emotion, text.intensity), text.experiencer, rng)]
    words = _ahead(text.aftermath, moods[0])
    ahead = [(*span, words) for span in text.spans]
    if text.other and text.other_emotion and text.other_intensity:
        # Several aftermaths of the two in any order: the model has to keep in mind whose is whose.
        moods.append(mood(felt(text.other_emotion, text.other_intensity), text.other, rng))
        mine = aftermaths(text.emotion, text.experiencer, intensity=text.intensity)
        theirs = rng.sample(aftermaths(text.other_emotion, text.other, intensity=text.other_intensity), 2)
        follows = [text.aftermath, theirs[0], *rng.sample([rng.choice(mine), theirs[1]], rng.randrange(3))]
        # Whatever is not about the experiencer is about the other.
        ends = [0, *(place for span in text.spans for place in span), len(text.text)]
        gaps = [(start, end) for start, end in zip(ends[::2], ends[1::2], strict=True) if end - start > 1]
        words = _ahead(theirs[0], moods[1])
        ahead += [(start, end, words) for start, end in gaps]
    elif rng.random() < 0.05:
        return Document(f"{text.aftermath} {text.text} {moods[0]}")
    else:
        follows = [text.aftermath]
    follows += moods
    return Document(" ".join([text.text, *rng.sample(follows, len(follows))]), tuple(ahead))


def _ahead(aftermath: str, mood: str) -> tuple[str, ...]:
    """Return the word of each kind in `AHEAD` that comes first in what follows about a person."""
    words = re.findall(r"\w+", f"{aftermath} {mood}")
    return tuple(next(word for word in words if word in kind) for kind in AHEAD)


def train_tokenizer(seed: int, size: int = 1_500) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on 20,000 documents; it puts `<s>` first and pads on the left."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = (document.text for document in islice(documents(seed), 20_000))
    return wrapped(train_bpe(texts, size, pieces), CONTEXT)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Initialise the model: six blocks of width 128, four query heads over two key-value heads.

    The input embeddings are random unit vectors and stay so. A trained embedding would learn each word's emotion by
    heart; so, layer 0 knows the words only, and whatever is decodable above it the model has worked out.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    embeddings = model.get_input_embeddings().weight.requires_grad_(False)
    embeddings.copy_(torch.nn.functional.normalize(torch.randn_like(embeddings), dim=-1))
    return model


def foreseen(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """List, for each kind in `AHEAD`, the tokens its words begin with, in the order that look-ahead targets count in.

    Words of one kind that begin alike count as one.
    """
    return [sorted({_beginning(tokenizer, word) for word in kind}) for kind in AHEAD]


def _beginning(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    token: int = tokenizer(" " + word, add_special_tokens=False)["input_ids"][0]
    return token


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int, part: int = 0, parts: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids (batch, length) and look-ahead targets (batch, length, kinds) of documents of about one length.

    Documents are closed by `</s>` and padded on the right. A target is an index into its kind's list in `foreseen`, or
    `NOTHING`.
    """
    rng, stream = random.Random(seed), documents(seed, part, parts)
    places = [
        {word: tokens.index(_beginning(tokenizer, word)) for word in kind}
        for kind, tokens in zip(AHEAD, foreseen(tokenizer), strict=True)
    ]
    nothing = [NOTHING] * len(AHEAD)
    while True:
        rows = []
        chunk = list(islice(stream, CHUNK * size))
        encoded = tokenizer([document.text for document in chunk], return_offsets_mapping=True)
        for document, ids, offsets in zip(
            chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            spans = [
                (start, end, [place[word] for place, word in zip(places, words, strict=True)])
                for start, end, words in document.ahead
            ]
            ahead = [next((words for a, b, words in spans if a < end <= b), nothing) for _, end in offsets]
            rows.append((torch.tensor([*ids, tokenizer.eos_token_id]), torch.tensor([*ahead, nothing])))
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        for group in rng.sample(groups, len(groups)):
            yield (
                pad_sequence([ids for ids, _ in group], True, float(tokenizer.pad_token_id)),
                pad_sequence([ahead for _, ahead in group], True, NOTHING),
            )


class _Batches(IterableDataset):  # type: ignore[type-arg]
    """Let processes of their own make the batches, so that a fast device need not wait for them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, size: int) -> None:
        self._made_of = tokenizer, seed, size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        return batches(*self._made_of, part, parts)


def _prepared(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches, made on the way for a CPU and ahead of time for anything faster."""
    if device == "cpu":
        return batches(tokenizer, seed, size)
    # Spawned: a process forked off one that has used the tokenizer's threads may wait for them forever.
    return iter(
        DataLoader(
            _Batches(tokenizer, seed, size),
            batch_size=None,
            num_workers=WORKERS,
            prefetch_factor=CHUNK,
            multiprocessing_context="spawn",
        )
    )


def train(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 64,
    peak: float = 3e-3,
    look_ahead: float = 0.3,
    device: str = "cpu",
) -> tuple[LlamaForCausalLM, list[float]]:
    """Train a model with AdamW under a warmed-up cosine schedule and return it, on the CPU, with its loss at every step.

    The schedule is of so many steps or of so many minutes. With steps, the same arguments give the same weights on one CPU with
    the same number of threads.
    """
    if (steps is None) == (minutes is None):
        raise InputError("give either the steps or the minutes of the schedule")
    model = new_model(tokenizer, seed).to(device).train()
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
    )
    losses: list[float] = []
    kinds = [torch.tensor(tokens, device=device) for tokens in foreseen(tokenizer)]
    prepared = _prepared(tokenizer, seed, batch, device)
    begun = time.monotonic()
    with Progress() as progress:
        bar = progress.add_task("training", total=1.0)
        for step, (ids, ahead) in enumerate(prepared):
            over = step / steps if steps else (time.monotonic() - begun) / (60 * (minutes or 1))
            if over >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = peak * _rate(over)
            ids, ahead = ids.to(device), ahead.to(device)
            logits = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)
            loss = cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id)
            known = ahead[:, :-1].flatten(0, 1)
            if (known != NOTHING).any():  # else it would be the mean of nothing
                for tokens, places in zip(kinds, known.unbind(1), strict=True):
                    loss = loss + look_ahead * cross_entropy(logits[:, tokens], places, ignore_index=NOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            recent = sum(losses[-50:]) / len(losses[-50:])
            progress.update(bar, completed=over, description=f"loss {recent:.3f}")
            if len(losses) % 250 == 0:
                progress.console.print(f"step {len(losses)}: loss {recent:.3f}")
    return model.cpu().eval(), losses


def _rate(over: float) -> float:
    """Return the learning rate, as a share of its peak, when a share `over` (0 to 1) of the run is over."""
    return min(0.005 + over / WARM_UP, 0.02 + 0.98 * (1 + math.cos(math.pi * over)) / 2)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint: weights in half precision, to be computed with in single precision."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = LlamaConfig.from_pretrained(out)
    config.dtype = torch.float32
    config.save_pretrained(out)


def main() -> None:
    """Read the command line, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the schedule in steps")
    length.add_argument("--minutes", type=float, help="length of the schedule in minutes of training")
    parser.add_argument("--batch", type=int, default=64, help="documents in a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(given.device == "cpu")
    start = time.perf_counter()
    tokenizer = train_tokenizer(given.seed)
    model, losses = train(
        tokenizer,
        seed=given.seed,
        steps=given.steps,
        minutes=given.minutes,
        batch=given.batch,
        device=given.device,
    )
    save(model, tokenizer, given.out)
    print(
        f"{model.num_parameters():,} parameters, {len(losses):,} steps, last loss {losses[-1]:.3f}, "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
