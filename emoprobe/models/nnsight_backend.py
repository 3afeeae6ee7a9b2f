"""Live models on nnsight 0.8: its `TransformersModel`, and the deprecated `LanguageModel`, which is one.

nnsight runs the modules of a transformers model, so what `transformers_backend` places on those modules acts in nnsight's
`trace()` and `generate()` contexts as in our own calls: inside `live.intervene(...)` a trace sees the changed model, and
`.input` of a block is its stream after our edits. One exception: an edit at layer n_layers acts behind `.output` of the last
block, so a trace reads it further on (the final norm's input, the logits). A trace written inside `intervene` may hold any
intervention of its own.

Hooks stay on this machine. For remote execution `edited` writes the same interventions down as nnsight operations: a copy of
the model with stored edits, which nnsight replays in every trace of it and sends along where `remote=True`.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import nnsight
import torch
from nnsight.intervention.iterator import Iterations
from torch import Tensor
from typing_extensions import Self

from emoprobe.errors import InputError
from emoprobe.folding import fold_keys, fold_queries
from emoprobe.interventions import AttentionBias, Forward, Intervention
from emoprobe.models.live import Batch, LiveModel, check_interventions
from emoprobe.models.passes import Valuations, act_on, describe_pass
from emoprobe.models.transformers_backend import TransformersModel
from emoprobe.models.transformers_structure import by_ranges


class NnsightModel(LiveModel):
    """An nnsight `TransformersModel`: run here through the transformers model in it, or remotely through `edited`."""

    backend = "nnsight"

    def __init__(self, underlying: Any, tokenizer: Any = None, name: str | None = None) -> None:
        super().__init__()
        self.underlying = underlying
        self.tokenizer = underlying.tokenizer if tokenizer is None else tokenizer
        self._inner = TransformersModel(underlying._module, self.tokenizer, name)
        self.name = self._inner.name
        self.n_layers, self.d_model, self.n_heads = (
            self._inner.n_layers,
            self._inner.d_model,
            self._inner.n_heads,
        )
        self.context_length = self._inner.context_length

    @property
    def _local(self) -> TransformersModel:
        """The transformers model that nnsight holds; loading its weights (`dispatch`) gives it another one."""
        module = self.underlying._module
        if self._inner.underlying is not module:
            self._inner = TransformersModel(module, self.tokenizer, self.name)
        if self._inner.device.type == "meta":
            raise InputError(
                f"the weights of {self.name} are not loaded: call dispatch() on the nnsight model, or use "
                "live.edited(...) to run it elsewhere"
            )
        return self._inner

    @property
    def device(self) -> torch.device:
        return self._local.device

    @property
    def dtype(self) -> torch.dtype:
        return self._local.dtype

    @property
    def vocabulary_size(self) -> int:
        return self._local.vocabulary_size

    def forward(self, batch: Batch) -> Tensor:
        """Run the model and return logits (batch, position, vocab)."""
        return self._local.forward(batch)

    def streams_by_layer(self, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
        """Return the residual stream (batch, position, d_model) of each layer, stopping before the deepest one's block."""
        return self._local.streams_by_layer(batch, layers)

    def attention(self, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return attention outputs (layers, batch, position, d_model) and weights (layers, batch, heads, queries, keys)."""
        return self._local.attention(batch, layers)

    def _generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        """Return prompt and continuation, (batch × sequences, position)."""
        return self._local.generate_ids(batch, **options)

    def logit_lens(self, vectors: Tensor, *, folded: bool = True) -> Tensor:
        """Map residual vectors (…, d_model) to the logits they promote (…, vocab), with what the final norm does to them."""
        return self._local.logit_lens(vectors, folded=folded)

    def _found(self) -> dict[str, object]:
        """Return what the transformers backend has to say, and which blocks take a bias as an nnsight edit."""
        edits = by_ranges("inject as nnsight edits", self.n_layers, self._way_of_editing)
        return {**self._local._found(), **edits}

    def _way_of_editing(self, layer: int) -> str:
        return f"yes, at {self._attention_path(layer, 'it')[1]}"

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._local.named_weights()

    @contextmanager
    def _place(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        with self._local.intervene(*interventions):
            yield

    @contextmanager
    def suspended(self) -> Iterator[Self]:
        """Run the block without the interventions that are in place, which is the untouched model to the last bit."""
        with super().suspended(), self._local.suspended():
            yield self

    # As nnsight operations -------------------------------------------------------------------------------------------

    def edited(self, *interventions: Intervention) -> Any:
        """Return a copy of the nnsight model in which these interventions are stored edits; the original stays as it is.

        Every `trace` and `generate` of the copy replays them, in this process or with `remote=True`, where they travel with
        the request. Weights need not be loaded here. Greedy decoding and sampling are right, with or without cache; beam
        search raises, since it reorders the cache behind nnsight's back. Positions cannot be character spans: a trace is not
        given the text. nnsight warns at the end of each run that the edit waits for another step: that is by design.

        Raises `InputError` for what `intervene` refuses, and for a bias in attention that nnsight cannot see inside.
        """
        check_interventions(interventions, self.n_layers)
        active = [item for item in interventions if not (isinstance(item, AttentionBias) and item.is_zero)]
        sites = {
            item.layer: self._attention_path(item.layer, f"block {item.layer} of {self.name}")
            for item in active
            if isinstance(item, AttentionBias)
        }
        paths = self._paths()
        nnsight.register("emoprobe")  # a server need not have it installed: its functions are sent along
        with self.underlying.edit() as (_, edited):
            run_edits(edited, active, paths, sites)
        return edited

    def _paths(self) -> tuple[str, str]:
        """Return where the base model and its list of blocks lie in the module tree."""
        module, names = self.underlying._module, {}
        for name, child in module.named_modules():
            names[child] = name
        return names[module.base_model], names[self._inner._blocks]

    def _attention_path(self, layer: int, where: str) -> tuple[str, str]:
        """Return where in a block its attention module lies, and the name of the call of its attention function."""
        for name, child in self._inner._blocks[layer].named_modules():
            if "Attention" in type(child).__name__ and hasattr(child, "layer_idx"):
                calls = [
                    operation
                    for operation in self.underlying.get(f"{self._paths()[1]}.{layer}.{name}").source.names
                    if re.fullmatch(r"attention_interface_\d+", operation)
                ]
                if calls and inspect.getsource(type(child).forward).count("attention_interface(") > 1:
                    raise InputError(
                        f"{where} computes several attentions, and an nnsight edit reaches one: use live.intervene, which "
                        "works on this machine only"
                    )
                if calls:
                    return name, calls[-1]  # the first ones bind the name, the last one calls it
        raise InputError(
            f"{where} computes attention outside transformers' attention interface, so a bias cannot be "
            "written as an nnsight edit: use live.intervene, which works on this machine only"
        )


def run_edits(
    model: Any,
    interventions: Sequence[Intervention],
    paths: tuple[str, str],
    sites: dict[int, tuple[str, str]],
) -> None:
    """Carry out interventions in every pass of one run of an nnsight model; runs wherever the model does."""
    memory: dict[Any, Any] = {}  # what a generation has to keep from one pass to the next
    # Not the tracer's own iter: a tracer that has left its frame cannot be sent to a server.
    for _ in Iterations()[:]:
        run_edits_once(model, interventions, paths, sites, memory)


def run_edits_once(
    model: Any,
    interventions: Sequence[Intervention],
    paths: tuple[str, str],
    sites: dict[int, tuple[str, str]],
    memory: dict[Any, Any],
) -> None:
    """Carry out interventions in one pass, in forward order."""
    base, blocks = model.get(paths[0]), model.get(paths[1])
    args, kwargs = base.inputs
    given = {"input_ids": args[0], **kwargs} if args else kwargs
    forward = memory["forward"] = describe_pass(given, memory.get("forward"), None, None)
    for layer in sorted({item.layer for item in interventions}):
        here = [item for item in interventions if item.layer == layer]
        if layer == len(blocks):
            output = blocks[layer - 1].output
            first, *rest = output if isinstance(output, tuple) else (output,)
            stream, _ = act_on(first, here, forward)
            blocks[layer - 1].output = (stream, *rest) if isinstance(output, tuple) else stream
            continue
        stream, valuations = act_on(blocks[layer].input, here, forward)
        blocks[layer].input = stream
        if valuations is not None:
            name, call = sites[layer]
            fold_into(getattr(blocks[layer].get(name).source, call), valuations, forward, memory, layer)


def fold_into(
    call: Any, valuations: Valuations, forward: Forward, memory: dict[Any, Any], layer: int
) -> None:
    """Fold a bias into queries and keys at the call of an attention function."""
    (module, query, key, value, *mask), kwargs = call.inputs
    if kwargs.get("softcap") is not None:
        raise ValueError(
            "this model caps its attention scores, and a folded bias would be capped with them: not supported"
        )
    queries, keys = valuations
    if forward.start:
        before, last = memory[layer]
        if not torch.equal(last, key[:, :, forward.start - 1]) or before.shape[1] != forward.start:
            raise ValueError(
                "the KV cache was reordered or cropped (beam search does this): not supported in nnsight edits"
            )
        keys = torch.cat([before, keys], dim=1)
    if keys.shape[1] != key.shape[-2]:
        raise ValueError("only a KV cache that grows by what comes in is supported in nnsight edits")
    memory[layer] = keys, key[:, :, -1]
    width = query.shape[-1]
    scale = kwargs.get("scaling") or width**-0.5
    key, value = fold_keys(key, value, keys)
    call.inputs = (
        (module, fold_queries(query, queries, scale), key, value, *mask),
        {**kwargs, "scaling": scale},
    )
    output, weights = call.output
    call.output = output[..., :width].contiguous(), weights
