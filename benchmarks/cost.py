"""Count what the studies ask of a model, step by step: what `emoprobe study --dry-run` estimates from.

    python benchmarks/cost.py study bundled
    python benchmarks/cost.py concepts bundled
    python benchmarks/cost.py claims bundled

A line for each step: texts, tokens (with padding) and passes through the model's blocks, how many of the passes were with
gradients, the processor's seconds within them and in all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import emoprobe as ep
from emoprobe.study import Result, run_claims, run_concepts, run_study
from emoprobe.study.cost import study_cost
from emoprobe.study.folder import RunFolder
from emoprobe.study.run import read_corpus

KINDS = {"study": run_study, "concepts": run_concepts, "claims": run_claims}


def counted(blocks: torch.nn.Module) -> Counter[str]:
    """Return what is counted of every pass from now on."""
    found: Counter[str] = Counter()
    begun: list[float] = []

    def before(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = next(
            one for one in (named.get("input_ids"), *given, named.get("inputs_embeds")) if one is not None
        )
        found.update(texts=tokens.shape[0], tokens=tokens.shape[0] * tokens.shape[1], passes=1)
        found.update(with_gradients=int(torch.is_grad_enabled()))
        begun.append(time.process_time())

    def after(module: torch.nn.Module, given: tuple[Any, ...], result: Any) -> None:
        found["within"] += time.process_time() - begun.pop()  # type: ignore[assignment]

    blocks.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
    blocks.register_forward_hook(after, always_call=True)  # where reading stops early too
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model")
    parser.add_argument("--corpus", default="passages")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    model = ep.load_model(options.model)
    found, step = counted(model.underlying.base_model), RunFolder.step

    def timed(folder: RunFolder, name: str, make: Callable[[], Result]) -> Result:
        found.clear()
        begun = time.process_time()
        result = step(folder, name, make)
        print(f"{name}: {dict(found)}, in all {time.process_time() - begun:.1f} s", flush=True)
        return result

    RunFolder.step = timed  # type: ignore[method-assign]
    corpus = read_corpus(options.corpus, options.limit, 0)
    print(study_cost(options.kind, model, corpus, options.limit))
    with tempfile.TemporaryDirectory() as folder:
        KINDS[options.kind](model, corpus, f"{folder}/run", limit=options.limit, progress=False)


if __name__ == "__main__":
    main()
