"""Steer with repeng or steering-vectors in an environment of their own. `peers_steering.py` runs this; emoprobe is not needed.

    python peers_side.py PEER MODEL VECTORS OUT

MODEL is a folder in Hugging Face format; VECTORS holds what emoprobe exported (`vector.gguf`, `vector.safetensors`) and the
tokens (`tokens.safetensors`: ids and mask, padded on the left, the first row without padding). Writes OUT.safetensors, logits
(or token ids, where they are generated) for each case, and OUT.json: versions, and for each case that failed the error.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

FROM_TOKEN, NEW_TOKENS = 3, 8
Run = Callable[[PreTrainedModel], Tensor]
Steering = Callable[[PreTrainedModel], AbstractContextManager[None]]


def runs(ids: Tensor, mask: Tensor) -> dict[str, Run]:
    """Return the ways in which a steered model is run."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def generated(model: PreTrainedModel) -> Tensor:
        options = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        return model.generate(input_ids=ids, attention_mask=mask, **options)

    def step_by_step(model: PreTrainedModel) -> Tensor:
        pieces, cache = [ids[:1, :FROM_TOKEN], *ids[:1, FROM_TOKEN:].split(1, dim=1)], None
        logits = []
        for piece in pieces:
            output = model(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    return {
        "one text": lambda model: model(input_ids=ids[:1]).logits,
        "padded": lambda model: model(input_ids=ids, attention_mask=mask, position_ids=positions).logits,
        "padded, no positions given": lambda model: model(input_ids=ids, attention_mask=mask).logits,
        "generated": generated,
        "step by step": step_by_step,
    }


def repeng_steering(folder: Path) -> dict[str, Steering]:
    """Return the ways in which repeng steers."""
    from repeng import ControlModel, ControlVector

    vector = ControlVector.import_gguf(folder / "vector.gguf")

    def steering(factor: float, **options: bool) -> Steering:
        @contextmanager
        def steered(model: PreTrainedModel) -> Iterator[None]:
            control = ControlModel(model, list(vector.directions))
            try:
                control.set_control(vector, factor, **options)
                yield
            finally:
                control.unwrap()

        return steered

    return {
        "added": steering(1.0),
        "added -2 times": steering(-2.0),
        "added, norm kept": steering(1.0, normalize=True),
    }


def steering_vectors_steering(folder: Path) -> dict[str, Steering]:
    """Return the ways in which steering-vectors steers."""
    from steering_vectors import SteeringVector, ablation_operator

    added = load_file(folder / "vector.safetensors")
    vector = SteeringVector({int(n): one for n, one in added.items()}).to(torch.float64)
    return {
        "added": vector.apply,
        "added -2 times": lambda model: vector.apply(model, multiplier=-2.0),
        "projected out": lambda model: vector.apply(model, operator=ablation_operator()),
        "added from a token on": lambda model: vector.apply(model, min_token_index=FROM_TOKEN),
        "added to chosen tokens": lambda model: vector.apply(model, token_indices=[FROM_TOKEN]),
    }


BOTH = [
    ("added", "one text"),
    ("added", "padded"),
    ("added -2 times", "padded"),
    ("added", "generated"),
    ("added", "padded, no positions given"),
]
CASES = {
    "repeng": [*BOTH, ("added, norm kept", "padded")],
    "steering_vectors": [
        *BOTH,
        ("projected out", "padded"),
        ("added from a token on", "one text"),
        ("added from a token on", "padded"),
        ("added from a token on", "step by step"),
        ("added to chosen tokens", "one text"),
    ],
}


@torch.no_grad()
def main(peer: str, model: str, folder: Path, out: Path) -> None:
    """Run all cases of a peer."""
    steerings = {"repeng": repeng_steering, "steering_vectors": steering_vectors_steering}[peer](folder)
    tokens = load_file(folder / "tokens.safetensors")
    ways, loaded = (
        runs(tokens["ids"], tokens["mask"]),
        AutoModelForCausalLM.from_pretrained(model).double().eval(),
    )
    found, failed = {}, {}
    for steering, run in CASES[peer]:
        try:
            with steerings[steering](loaded):
                found[f"{steering}; {run}"] = ways[run](loaded).contiguous()
        except Exception as error:  # whatever a peer raises is what is reported
            failed[f"{steering}; {run}"] = f"{type(error).__name__}: {error}".splitlines()[0]
    save_file(found, out.with_suffix(".safetensors"))
    packages = [peer.replace("_", "-"), "transformers", "torch", "numpy"]
    record = {"versions": {name: version(name) for name in packages}, "failed": failed}
    out.with_suffix(".json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
