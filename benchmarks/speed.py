"""Measure what reading and intervening cost beside the untouched model, as ratios within one run.

    python benchmarks/speed.py [--device cpu] [--tokens 512] [--repeats 5] [--only PART]

On the CPU the model is as large as GPT-2 small (12 blocks, width 768, one thread, float32), on a GPU as Llama 3.2 1B (16
blocks, width 2048, bfloat16), both with random weights. What is compared runs in turn, so that both meet the same machine,
and the median of the ratios is reported: of wall time, and of CPU time, which other programs disturb less. Writes
benchmarks/speed.json and benchmarks/speed.md, with the device in the name where it is not the CPU.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import emoprobe as ep
from emoprobe.activations import stream_residuals
from emoprobe.artefacts import write_bytes
from emoprobe.models.live import Batch, LiveModel

HERE = Path(__file__).resolve().parent
TEXTS, DIMENSIONS = 64, 3
CAPTURE_TARGET, GENERATION_TARGETS = 1.05, {"cpu": 0.85, "cuda": 0.95}
LENGTH, PASS_TARGET = 1024, 1.15


def make_model(device: str) -> LiveModel:
    """Return a model of the size that the targets speak of, with random weights and the bundled tokenizer."""
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if device == "cpu":
        config: Any = GPT2Config(n_layer=12, n_embd=768, n_head=12, **ends)
    else:
        config = LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=True,
            **ends,
        )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    return ep.wrap(model, ep.load_model("bundled").tokenizer, name="random weights")


def make_valuation(model: LiveModel) -> ep.Valuation:
    """Return a random valuation for every block, with values of ordinary size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(model.n_layers, DIMENSIONS, model.d_model, generator=generator) / model.d_model**0.5
    names = tuple(f"d{k}" for k in range(DIMENSIONS))
    return ep.Valuation(weight, torch.zeros(model.n_layers, DIMENSIONS), names, tuple(range(model.n_layers)))


# What is compared ----------------------------------------------------------------------------------------------------


def bare_pass(model: LiveModel, batch: Batch, depth: int) -> Tensor:
    """Return the stream after `depth` blocks, by calling the model's own blocks one after another."""
    base = model.underlying.base_model
    causal = torch.ones(
        batch.real.shape[1], batch.real.shape[1], dtype=torch.bool, device=model.device
    ).tril()
    mask = causal & batch.real[:, None, None] | torch.eye(len(causal), dtype=torch.bool, device=model.device)
    positions = batch.position_ids
    if hasattr(base, "wpe"):
        stream, extra = base.wte(batch.input_ids) + base.wpe(positions), {}
    else:
        stream = base.embed_tokens(batch.input_ids)
        extra = {"position_embeddings": base.rotary_emb(stream, positions), "position_ids": positions}
    for block in (base.h if hasattr(base, "h") else base.layers)[:depth]:
        stream = block(stream, attention_mask=mask, **extra)
    return stream


def capture_cost(model: LiveModel, texts: Sequence[str], layer: int, repeats: int) -> dict[str, Any]:
    """Compare `capture` at a layer, tokenising and pooling included, with a bare pass of the same batches as deep."""
    parts = list(stream_residuals(model, texts, layer))
    streams = [bare_pass(model, part.batch, layer) for part in parts]
    for part, stream in zip(parts, streams, strict=True):  # or the comparison would mean nothing
        apart = (part.stream[0] - stream)[part.batch.real].float().abs().max()
        assert apart < 0.02 * stream.float().abs().max(), f"the two passes differ by {apart}"

    def bare() -> None:
        for part in parts:
            bare_pass(model, part.batch, layer)

    return compare({"bare": bare, "ours": lambda: model.capture(texts, layer)}, repeats)


def depth_cost(model: LiveModel, texts: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Compare `capture` stopped at a layer with the pass through all blocks."""
    rows = []
    for share in (0.25, 0.5, 0.75):
        layer = round(share * model.n_layers)
        pair: dict[str, Callable[[], object]] = {
            "bare": lambda: model.capture(texts, model.n_layers),
            "ours": lambda layer=layer: model.capture(texts, layer),  # type: ignore[misc]
        }
        rows.append({"layer": layer, "share": share, **compare(pair, repeats)})
    return rows


def generation_speed(model: LiveModel, tokens: int, repeats: int) -> dict[str, Any]:
    """Compare tokens per second of greedy generation with injection in every block and without."""
    valuation, prompt = make_valuation(model), "That evening the rope ran out"
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def injected() -> object:
        with ep.inject(model, valuation, 0.5):
            return model.generate(prompt, **options)

    untouched = model.logits(prompt)
    with ep.inject(model, valuation, 0.5):
        assert not torch.allclose(model.logits(prompt), untouched, rtol=1e-4), "the injection has no effect"
    found = compare({"ours": injected, "bare": lambda: model.generate(prompt, **options)}, repeats)
    seconds = found["seconds"]
    return {
        "tokens": tokens,
        "ratio": 1 / found["ratio"],
        "cpu_ratio": 1 / found["cpu_ratio"],
        "tokens_per_second": {"injected": tokens / seconds["ours"], "untouched": tokens / seconds["bare"]},
    }


def injection_cost(model: LiveModel, repeats: int) -> dict[str, Any]:
    """Compare a forward pass of one text of `LENGTH` tokens with injection in every block and without."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (1, LENGTH), generator=generator).to(model.device)
    valuation = make_valuation(model)

    def injected() -> object:
        with ep.inject(model, valuation, 0.5):
            return model.underlying(ids, use_cache=False)

    pair = {"ours": injected, "bare": lambda: model.underlying(ids, use_cache=False)}
    return {"length": LENGTH, "repeats": repeats, **compare(pair, repeats)}


def compare(pair: dict[str, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Run what is ours and what is bare in turn; return the median ratio of their times, wall and CPU."""
    wall: dict[str, list[float]] = {name: [] for name in pair}
    cpu: dict[str, list[float]] = {name: [] for name in pair}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, function in pair.items():
            started = time.perf_counter(), time.process_time()
            with torch.no_grad():
                function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                wall[name].append(time.perf_counter() - started[0])
                cpu[name].append(time.process_time() - started[1])

    def ratio(times: dict[str, list[float]]) -> float:
        return statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True))

    seconds = {name: statistics.median(times) for name, times in wall.items()}
    return {"ratio": ratio(wall), "cpu_ratio": ratio(cpu), "seconds": seconds}


# Showing -------------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """Return what was measured as Markdown."""
    capture, generation = found["capture"], found["generation"]
    shown = "wall time" if found["device"] == "cuda" else "CPU time"
    key = "ratio" if found["device"] == "cuda" else "cpu_ratio"
    lines = [
        f"| what ({found['model']}) | {shown}, ratio | wall time, ratio | target |",
        "|---|---|---|---|",
        f"| capture at layer {capture['layer']} beside a bare pass of the same batches as deep | {capture[key]:.3f} "
        f"| {capture['ratio']:.3f} | at most {CAPTURE_TARGET} |",
    ]
    lines += [
        f"| capture at layer {row['layer']} beside the pass through all blocks | {row[key]:.2f} | {row['ratio']:.2f} "
        f"| about {row['share']:.2f} |"
        for row in found["depth"]
    ]
    injection = found["injection"]
    lines.append(
        f"| forward pass of {injection['length']} tokens, injected in every block beside untouched | {injection[key]:.3f} "
        f"| {injection['ratio']:.3f} | at most {PASS_TARGET} |"
    )
    lines.append(
        f"| tokens per second over {generation['tokens']} tokens, injected in every block beside untouched "
        f"| {generation[key]:.2f} | {generation['ratio']:.2f} | at least {GENERATION_TARGETS[found['device']]} |"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, default=512, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs; the median is reported")
    parser.add_argument(
        "--only",
        choices=("capture", "depth", "injection", "generation"),
        help="measure this alone, and keep the other figures",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(given.device)
    texts = ep.load_corpus("ground-truth", limit=TEXTS).texts
    layer = model.n_layers // 2
    parts: dict[str, Callable[[], Any]] = {
        "capture": lambda: {"layer": layer, **capture_cost(model, texts, layer, given.repeats)},
        "depth": lambda: depth_cost(model, texts, given.repeats),
        "injection": lambda: injection_cost(model, given.repeats),
        "generation": lambda: generation_speed(model, given.tokens, given.repeats),
    }
    path = HERE / ("speed.json" if given.device == "cpu" else f"speed-{given.device}.json")
    before = json.loads(path.read_text()) if given.only else {}
    found = {
        "model": f"{model.n_layers} blocks, width {model.d_model}, {str(model.dtype).removeprefix('torch.')}",
        "device": given.device,
        "hardware": torch.cuda.get_device_name() if given.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "texts": len(texts),
        "repeats": before.get("repeats", given.repeats),
        **{name: before[name] if given.only not in (None, name) else run() for name, run in parts.items()},
    }
    write_bytes(path, (json.dumps(found, indent=1) + "\n").encode())
    write_bytes(path.with_suffix(".md"), table(found).encode())
    print(table(found))


if __name__ == "__main__":
    main()
