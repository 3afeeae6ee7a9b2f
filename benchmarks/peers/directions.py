"""A direction for each layer out of pairs of texts: the difference of means at the last token.

Given a folder of a model and `positive` and `negative` texts, paired, each returns `directions` (1, layers, d_model) of unit
length, of what blocks 0 … leave.
"""

# what is installed here is one environment's; imports are lines of the user's code
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Given = dict[str, Any]
Work = Callable[[], dict[str, Tensor]]

CONTESTANTS = {"emoprobe": "own", "transformers": "own", "steering_vectors": "four", "repeng": "four"}
COMPARED, TOLERANCE = "directions", 1e-4
REASONS = {
    "transformers": "a loop by hand, batched by length, the final norm taken away from the last layer",
    "repeng": "takes the first principal component of the pairs' differences, not their mean",
}


def emoprobe(given: Given) -> Work:
    """Take the difference of means with emoprobe."""
    import torch

    import emoprobe as ep

    model = ep.load_model(given["model"])

    def work() -> dict[str, Tensor]:
        read = model.capture([*given["positive"], *given["negative"]], range(1, model.n_layers + 1), "last")
        positive, negative = read.split(len(given["positive"]))
        apart = positive.mean(0) - negative.mean(0)
        return {"directions": torch.nn.functional.normalize(apart, dim=-1)[None]}

    return work


def transformers(given: Given) -> Work:
    """Take the difference of means with `output_hidden_states`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).base_model.eval()
    # Or the last state is normed.
    setattr(model, "norm" if hasattr(model, "norm") else "ln_f", torch.nn.Identity())

    def mean(texts: list[str]) -> Tensor:
        total = torch.zeros(model.config.num_hidden_layers, model.config.hidden_size)
        texts = sorted(texts, key=len)
        for first in range(0, len(texts), 32):
            batch = tokenizer(texts[first : first + 32], padding=True, return_tensors="pt")
            positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
            states = model(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=positions,
                output_hidden_states=True,
                use_cache=False,
            )
            total += torch.stack([one[:, -1].sum(0) for one in states.hidden_states[1:]])
        return total / len(texts)

    def work() -> dict[str, Tensor]:
        apart = mean(given["positive"]) - mean(given["negative"])
        return {"directions": torch.nn.functional.normalize(apart, dim=-1)[None]}

    return work


def steering_vectors(given: Given) -> Work:
    """Train a steering vector with steering-vectors."""
    import torch
    from steering_vectors import train_steering_vector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    pairs = list(zip(given["positive"], given["negative"], strict=True))

    def work() -> dict[str, Tensor]:
        trained = train_steering_vector(model, tokenizer, pairs, batch_size=32)
        apart = torch.stack(list(trained.layer_activations.values()))
        return {"directions": torch.nn.functional.normalize(apart, dim=-1)[None]}

    return work


def repeng(given: Given) -> Work:
    """Train a control vector with repeng."""
    import torch
    from repeng import ControlModel, ControlVector, DatasetEntry
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    loaded = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    layers = list(range(loaded.config.num_hidden_layers))
    model = ControlModel(loaded, layers)
    pairs = zip(given["positive"], given["negative"], strict=True)
    entries = [DatasetEntry(positive, negative) for positive, negative in pairs]

    def work() -> dict[str, Tensor]:
        trained = ControlVector.train(
            model, tokenizer, entries, batch_size=32, method="pca_diff", hidden_layers=layers
        )
        apart = torch.stack([torch.from_numpy(trained.directions[n]) for n in sorted(trained.directions)])
        return {"directions": torch.nn.functional.normalize(apart.float(), dim=-1)[None]}

    return work
