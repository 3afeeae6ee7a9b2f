"""Train a prose model from a seed: tokenizer, Llama-architecture weights, files.

    python -m emoprobe.models.prose.train --size prose-small --data DIR --out DIR --minutes 80 --threads 2
    python -m emoprobe.models.prose.train --size prose --data DIR --out DIR --minutes 20 --device cuda

DIR of `--data` holds `fiction/` and `tinystories/` (see `corpus.py`). The corpus is tokenised once into `--out`. A run
that was stopped goes on from its last checkpoint with `--resume`. The learning rate is a function of how much of the
given steps or minutes is over; with `--steps`, the same arguments give the same losses on one machine with one number
of threads, resumed or not. On a CPU with glibc, freed memory is best kept between steps, which makes them a third faster:

    MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=40000000000 python -m emoprobe.models.prose.train …
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from emoprobe.errors import InputError
from emoprobe.models.byte_level import BOS, EOS, PAD, wrapped
from emoprobe.models.prose.corpus import held_out_documents, train_documents
from emoprobe.models.prose.tokens import Tokens, read_tokens, train_tokenizer, write_tokens

FLOOR = 0.02  # of the peak learning rate: where warm-up starts and the cosine ends
WARM_UP = 0.02  # of the whole run


class Size(NamedTuple):
    """The shape of a model and of its steps."""

    width: int
    blocks: int
    heads: int
    key_value_heads: int
    inner: int  # width of the MLP
    context: int
    batch: int  # windows in a step
    peak: float  # learning rate


SIZES = {
    "prose": Size(256, 7, 8, 4, 704, context=512, batch=128, peak=3e-3),
    "prose-small": Size(160, 5, 4, 4, 432, context=256, batch=8, peak=3e-3),
}


def prepare(data: Path, out: Path) -> Tokenizer:
    """Train the tokenizer and tokenise the corpus into `out`, unless that is done; return the tokenizer.

    Raises `InputError` where a file of the corpus is not there.
    """
    path = out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(train_documents(data)).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    for name, documents in (("validation", held_out_documents(data)), ("train", train_documents(data))):
        if not (out / f"{name}.json").exists():  # it is written last
            write_tokens(tokenizer, documents, out / f"{name}.bin")
    return tokenizer


def new_model(size: Size, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """Initialise a Llama with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.width // size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def windows(tokens: Tokens, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where the windows (count,) of `length` tokens start: at a paragraph if one starts in that stretch."""
    stretches = np.arange(0, len(tokens.ids) - 2 * length + 1, length)
    if not len(stretches):
        raise InputError(
            f"{len(tokens.ids)} tokens are too few for a window of {length}: give a larger corpus"
        )
    starts = np.append(tokens.starts, len(tokens.ids))
    following = starts[np.searchsorted(starts, stretches)]
    return np.where(following < stretches + length, following, stretches)


def batches(tokens: Tokens, size: Size, bos: int, seed: int, step: int = 0) -> Iterator[torch.Tensor]:
    """Yield token ids (batch, context + 1), `<s>` and a window, from a step on; each pass is shuffled anew.

    A batch depends on the seed and its step alone, so that the step is all a resumed run needs to know.
    """
    places = windows(tokens, size.context)
    per_pass = max(len(places) // size.batch, 1)
    while True:
        order = np.random.default_rng([seed, step // per_pass]).permutation(places)
        for i in range(step % per_pass, per_pass):
            yield rows(tokens, order[i * size.batch : (i + 1) * size.batch], size.context, bos)
            step += 1


def rows(tokens: Tokens, places: np.ndarray[Any, Any], length: int, bos: int) -> torch.Tensor:
    """Return `<s>` and the `length` tokens from each place on (place, length + 1), int64."""
    read = [np.concatenate([[bos], tokens.ids[place : place + length]]) for place in places]
    return torch.from_numpy(np.stack(read).astype(np.int64))


def learning_rate(progress: float) -> float:
    """Return the learning rate, as a share of its peak, when a share `progress` (0 to 1) of the run is over."""
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return FLOOR + (1 - FLOOR) * min(progress / WARM_UP, cosine)


@dataclass
class Run:
    """A training run: model, optimizer and what has been seen so far."""

    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)  # nats per token of each step
    validation: list[tuple[float, float, float]] = field(
        default_factory=list
    )  # step, seconds, bits per character
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write all of the run to one file, which is at no time half written.

        There is no generator's state in it: initialisation is the one draw, and batches follow from the step.
        """
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["validation"] = torch.tensor(self.validation, dtype=torch.float64).view(-1, 3)
        tensors["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        save_file(tensors, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; raises `InputError` where it is of another size of model."""
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        parameters = {f"model.{name}": p for name, p in self.model.named_parameters()}
        if any(name not in tensors or tensors[name].shape != p.shape for name, p in parameters.items()):
            raise InputError(f"{path} is a checkpoint of another size: give the --size it was trained with")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name in parameters:
                parameters[name].data.copy_(value)
            elif name.startswith("optimizer."):
                _, i, key = name.split(".")
                state.setdefault(int(i), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.losses = tensors["losses"].tolist()
        self.validation = [tuple(row) for row in tensors["validation"].tolist()]
        self.seconds = tensors["seconds"].item()


def new_run(model: LlamaForCausalLM) -> Run:
    """Start a run with AdamW, which decays matrices and leaves the scales of the norms alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Run(model, torch.optim.AdamW(groups, betas=(0.9, 0.98)))


def train(
    run: Run,
    tokens: Tokens,
    held_out: Tokens,
    size: Size,
    *,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    checkpoint: Path | None = None,
    every: float = 180.0,
) -> None:
    """Train to the end of a schedule of so many steps, or of so many minutes where no steps are given.

    What the run did before counts, steps and seconds alike. Every so many seconds the held-out loss is taken and the
    checkpoint written.
    """
    if (steps is None) == (minutes is None):
        raise InputError("give either the steps or the minutes of the schedule")
    bos = run.model.config.bos_token_id
    start, saved = time.monotonic() - run.seconds, run.seconds
    with Progress() as display:
        bar = display.add_task("training", total=1.0)
        for ids in batches(tokens, size, bos, seed, len(run.losses)):
            progress = len(run.losses) / steps if steps else run.seconds / (60 * (minutes or 1))
            if progress >= 1:
                break
            run.losses.append(_step(run, ids, size.peak * learning_rate(progress)))
            run.seconds = time.monotonic() - start
            recent = sum(run.losses[-100:]) / len(run.losses[-100:])
            display.update(bar, completed=progress, description=f"loss {recent:.3f}")
            if run.seconds - saved >= every:
                run.validation.append(
                    (len(run.losses), run.seconds, bits_per_character(run.model, held_out, size))
                )
                if checkpoint:
                    run.save(checkpoint)
                display.console.print(
                    f"step {len(run.losses)}, {run.seconds:.0f} s: loss {recent:.3f}, "
                    f"held-out bits per character {run.validation[-1][2]:.3f}"
                )
                saved = run.seconds
    run.validation.append((len(run.losses), run.seconds, bits_per_character(run.model, held_out, size)))
    if checkpoint:
        run.save(checkpoint)


def _step(run: Run, ids: torch.Tensor, rate: float) -> float:
    loss = _loss(run.model, ids)
    run.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    return loss.item()


def _loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    ids = ids.to(model.device)
    with _precision(model.device):
        logits = model(input_ids=ids[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def bits_per_character(model: LlamaForCausalLM, held_out: Tokens, size: Size, count: int = 64) -> float:
    """Estimate the bits per character of held-out text from windows at equal distances, for watching a run.

    `evaluate.py` measures it on the whole.
    """
    places = windows(held_out, size.context)
    places = places[:: max(len(places) // count, 1)][:count]
    bos = model.config.bos_token_id
    parts = [places[i : i + size.batch] for i in range(0, len(places), size.batch)]
    losses = [_loss(model, rows(held_out, part, size.context, bos)).item() * len(part) for part in parts]
    return sum(losses) / len(places) / math.log(2) * len(held_out.ids) / held_out.characters


def save(run: Run, tokenizer: Tokenizer, out: Path, seed: int) -> None:
    """Write the transformers checkpoint, weights in bfloat16 to be computed with in single precision, and its history.

    The run's own weights are rounded by it.
    """
    run.model.bfloat16().save_pretrained(out)
    wrapped(tokenizer, run.model.config.max_position_embeddings).save_pretrained(out)
    entries = json.loads((out / "tokenizer.json").read_text("utf-8"))  # half the size without its indentation
    (out / "tokenizer.json").write_text(
        json.dumps(entries, ensure_ascii=False, separators=(",", ":")), "utf-8"
    )
    config = LlamaConfig.from_pretrained(out)
    config.dtype = torch.float32
    config.save_pretrained(out)
    history = {
        "seed": seed,
        "steps": len(run.losses),
        "seconds": run.seconds,
        "validation": [dict(zip(("step", "seconds", "bits"), row, strict=True)) for row in run.validation],
        "losses": run.losses,
    }
    (out / "training.json").write_text(json.dumps(history))


def main() -> None:
    """Read the command line, prepare, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with fiction/ and tinystories/")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for tokens, checkpoints and the model"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the schedule in steps")
    length.add_argument("--minutes", type=float, help="length of the schedule in minutes of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    # oneDNN's products: half as fast again on an AMD EPYC, where they keep single precision. Processors with matrix
    # units may round the factors to bfloat16.
    torch.set_float32_matmul_precision("medium")
    given.out.mkdir(parents=True, exist_ok=True)
    size, checkpoint = SIZES[given.size], given.out / "checkpoint.safetensors"
    if given.resume != checkpoint.exists():
        parser.error(
            f"{checkpoint} {'is not there: leave out' if given.resume else 'is there: move it, or give'} --resume"
        )
    tokenizer = prepare(given.data, given.out)
    run = new_run(new_model(size, tokenizer, given.seed).to(given.device))
    if given.resume:
        run.load(checkpoint)
    train(
        run,
        read_tokens(given.out / "train.bin"),
        read_tokens(given.out / "validation.bin"),
        size,
        seed=given.seed,
        steps=given.steps,
        minutes=given.minutes,
        checkpoint=checkpoint,
    )
    save(run, tokenizer, given.out / "model", given.seed)
    print(
        f"{run.model.num_parameters():,} parameters, {len(run.losses):,} steps, {run.seconds:.0f} s, "
        f"held-out bits per character {run.validation[-1][2]:.3f}"
    )


if __name__ == "__main__":
    main()
