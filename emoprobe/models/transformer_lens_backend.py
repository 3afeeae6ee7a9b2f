"""Live models on TransformerLens 4: a `TransformerBridge`, read and edited through its own hook points.

Residual streams are those of `blocks.{l}.hook_in` (= `hook_resid_pre`) and of the last block's `hook_out`; a valuation bias
is added to `blocks.{l}.attn.hook_attn_scores`, which holds the masked scores before the softmax. TransformerLens computes
attention in the plain way, so the n × n matrix is there anyway. Our hooks are permanent ones in its sense, so that a user's
`reset_hooks()` leaves them, and each is taken away by its own handle, so that a user's hooks stay.

Three things to know of TransformerLens. It takes a Hugging Face model that it is given apart: that model is of no use outside
the bridge afterwards. Its tokenizers put a start token before every text, also where the model was trained without one;
emoprobe tokenises with the model's own tokenizer and always gives ids and mask. And `enable_compatibility_mode()` centres
the weights of models with layer norm, so that their residual streams lose their mean; see `basis`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformers import AutoTokenizer, Cache
from transformers.cache_utils import CacheLayerMixin

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward, Intervention
from emoprobe.models.live import Batch, LiveModel
from emoprobe.models.passes import Valuations, act_on, add_bias, describe_pass
from emoprobe.models.transformers_structure import by_ranges


class TransformerLensModel(LiveModel):
    """A `TransformerBridge` over a transformers model, read and edited through its hook points."""

    backend = "transformer_lens"

    def __init__(self, underlying: TransformerBridge, tokenizer: Any = None, name: str | None = None) -> None:
        super().__init__()
        if not hasattr(underlying, "blocks"):
            raise InputError(f"{type(underlying.adapter).__name__} has no one list of blocks: not supported")
        self.underlying = underlying
        self.tokenizer = _own_tokenizer(underlying) if tokenizer is None else tokenizer
        self.name = name or underlying.cfg.model_name
        self.n_layers = int(underlying.cfg.n_layers)
        self.d_model = int(underlying.cfg.d_model)
        self.n_heads = int(underlying.cfg.n_heads)
        self.context_length = int(underlying.cfg.n_ctx)
        self._hooked: set[int] = set()
        self._biased: set[int] = set()
        self._pending: dict[int, Valuations] = {}  # of blocks whose attention has not run yet in this pass
        self._forward: Forward | None = None
        self._batch: Batch | None = None
        self._prompt_length: int | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.underlying.original_model.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.underlying.original_model.dtype
        return dtype

    @property
    def vocabulary_size(self) -> int:
        return int(self.underlying.cfg.d_vocab)

    @property
    def basis(self) -> str:  # type: ignore[override]  # weights may be processed after wrapping
        """ "raw", or "centred" once the weights that write to the residual stream were made to write no mean.

        Folding norms and value biases does not change the stream; centring, which `enable_compatibility_mode` does for models
        with layer norm, does.
        """
        if not getattr(self.underlying, "_weights_processed", False):
            return "raw"
        embedding = self.underlying.W_E.detach().float()
        centred = embedding.mean(-1).abs().max() < 1e-4 * embedding.abs().mean()
        return "centred" if centred else "raw"

    # Running ---------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Run the model and return logits (batch, position, vocab)."""
        with self._turn(), self._given(batch):
            logits: Tensor = self.underlying(
                batch.input_ids, attention_mask=batch.real.long(), return_type="logits", use_cache=False
            )
        return logits

    def streams_by_layer(self, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
        """Return the residual stream (batch, position, d_model) of each layer, stopping before the deepest one's block."""
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Tensor], None]:
            def read(stream: Tensor) -> None:
                found[layer] = stream
                if layer == max(layers):
                    raise _Stop

            return read

        with self._turn(), ExitStack() as stack:
            for layer in set(layers):
                stack.enter_context(_hooked(self._stream_point(layer), keep(layer)))
            self._run_until_stopped(batch)
        return [found[layer] for layer in layers]

    def attention(self, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return attention outputs (layers, batch, position, d_model) and weights (layers, batch, heads, queries, keys)."""
        outputs: dict[int, Tensor] = {}
        weights: dict[int, Tensor] = {}

        def keep(layer: int) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
            def read_weights(pattern: Tensor) -> None:
                weights[layer] = pattern

            def read_output(output: Tensor) -> None:
                outputs[layer] = output
                if layer == max(layers):
                    raise _Stop

            return read_weights, read_output

        with self._turn(), ExitStack() as stack:
            for layer in set(layers):
                attention = self._attention(layer, f"block {layer} of {self.name}")
                for point, read in zip(
                    (attention.hook_pattern, attention.hook_out), keep(layer), strict=True
                ):
                    stack.enter_context(_hooked(point, read))
            self._run_until_stopped(batch)
        pairs = [(outputs[layer], weights[layer]) for layer in layers]
        return torch.stack([output for output, _ in pairs]), torch.stack([pattern for _, pattern in pairs])

    def _run_until_stopped(self, batch: Batch) -> None:
        try:
            self.forward(batch)
        except _Stop:
            pass

    def _generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        """Return prompt and continuation, (batch × sequences, position), by the generation of transformers."""
        options.setdefault("pad_token_id", self.pad_token_id)
        with self._turn(), self._given(batch, generating=True):
            ids: Tensor = self.underlying.original_model.generate(
                input_ids=batch.input_ids, attention_mask=batch.real.long(), **options
            )
        return ids

    @contextmanager
    def _given(self, batch: Batch, generating: bool = False) -> Iterator[None]:
        """Let interventions know the text, and in generation where the prompt ends."""
        before = self._batch, self._prompt_length
        self._batch = batch
        self._prompt_length = batch.input_ids.shape[1] if generating else batch.prompt_length
        try:
            yield
        finally:
            self._batch, self._prompt_length = before

    # Reading ---------------------------------------------------------------------------------------------------------

    def _stream_point(self, layer: int) -> Any:
        blocks = self.underlying.blocks
        return blocks[-1].hook_out if layer == self.n_layers else blocks[layer].hook_in

    def _attention(self, layer: int, where: str) -> Any:
        attention = getattr(self.underlying.blocks[layer], "attn", None)
        if not isinstance(attention, AttentionBridge):
            raise InputError(f"{where} has no attention: it is of another kind")
        return attention

    def logit_lens(self, vectors: Tensor, *, folded: bool = True) -> Tensor:
        """Map residual vectors (…, d_model) to the logits they promote (…, vocab), with what the final norm does to them."""
        from emoprobe.models.transformers_backend import TransformersModel

        local = TransformersModel(self.underlying.original_model, self.tokenizer)
        return local.logit_lens(vectors, folded=folded)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under the names they have in transformers, so that fingerprints agree between backends."""
        model = self.underlying.original_model
        with torch.device("meta"):
            names = [name for name, _ in type(model)(model.config).named_parameters()]
        weights = {
            name.replace("_original_component.", ""): weight
            for name, weight in model.named_parameters(remove_duplicate=False)
        }
        yield from ((name, weights[name]) for name in names if name in weights)

    def _found(self) -> dict[str, object]:
        """Return architecture, basis, which blocks take a bias, and what can be done."""
        return {
            "architecture": type(self.underlying.original_model).__name__,
            "attention": "eager, computed by TransformerLens",
            "residual stream": self.basis,
            "capture and steer": f"yes, layers 0 to {self.n_layers}",
            **by_ranges("inject", self.n_layers, self._way_of_injection),
            "logits": "yes",
            "generate": "yes",
        }

    def _way_of_injection(self, layer: int) -> str:
        return f"yes, at hook_attn_scores: {type(self._biasable(layer, 'it')).__name__}"

    # Intervening -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _place(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        before = self._hooked, self._biased, self._forward
        biased = {item.layer for item in interventions if isinstance(item, AttentionBias)}
        with ExitStack() as stack:
            stack.callback(self._restore, *before)
            if interventions and not self._hooked:
                model = self.underlying.original_model
                stack.enter_context(model.register_forward_pre_hook(self._before_pass, with_kwargs=True))
                stack.enter_context(model.register_forward_hook(self._after_pass))
            for layer in {item.layer for item in interventions} - self._hooked:
                stack.enter_context(_hooked(self._stream_point(layer), self._at(layer)))
            for layer in biased - self._biased:
                self._place_bias(layer, stack)
            self._hooked = self._hooked | {item.layer for item in interventions}
            self._biased = self._biased | biased
            yield

    def _restore(self, hooked: set[int], biased: set[int], forward: Forward | None) -> None:
        self._hooked, self._biased, self._forward = hooked, biased, forward
        self._pending.clear()

    def _biasable(self, layer: int, where: str) -> Any:
        """Return the attention of a block. Raises `InputError` where a bias would have no effect on it."""
        attention = self._attention(layer, where)
        if type(attention).forward is AttentionBridge.forward:
            raise InputError(
                f"TransformerLens lets {type(attention.original_component).__name__} compute its own attention and throws "
                f"away what is added to hook_attn_scores, so no bias can go into {where}: wrap the "
                "transformers model instead"
            )
        return attention

    def _place_bias(self, layer: int, stack: ExitStack) -> None:
        attention = self._biasable(layer, f"block {layer} of {self.name}")
        stack.enter_context(attention.register_forward_pre_hook(self._prepare_cache(layer), with_kwargs=True))
        stack.enter_context(_hooked(attention.hook_attn_scores, self._biasing(layer)))

    def _before_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {"input_ids": args[0], **kwargs} if args else kwargs
        offsets = self._batch.offsets if self._batch is not None else None
        self._forward = describe_pass(given, self._forward, self._prompt_length, offsets)
        self._pending.clear()  # what a pass that broke off has left

    def _after_pass(self, model: nn.Module, args: Any, output: Any) -> None:
        if self._pending:
            raise RuntimeError(
                f"the attention of blocks {sorted(self._pending)} of {self.name} never asked for its bias, so λ had no "
                "effect there: TransformerLens does not compute this attention by itself"
            )

    def _at(self, layer: int) -> Callable[[Tensor], Tensor]:
        """Return what happens to the stream at `layer`: its edits in order, then the valuations of its biases."""

        def act(stream: Tensor) -> Tensor:
            assert self._forward is not None, "blocks run inside a pass of the model"
            here = [item for item in self._interventions if item.layer == layer]
            stream, valuations = act_on(stream, here, self._forward)
            if valuations is not None:
                self._pending[layer] = valuations
            return stream

        return act

    def _prepare_cache(self, layer: int) -> Callable[..., None]:
        """Return a hook that lets this layer of the KV cache, if there is one, remember the valuations of its keys."""

        def prepare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            past = next((item for item in (*args, *kwargs.values()) if isinstance(item, Cache)), None)
            if past is not None and layer in self._pending:
                queries, keys = self._pending[layer]
                self._pending[layer] = queries, _remember(past, getattr(module, "_layer_idx", layer), keys)

        return prepare

    def _biasing(self, layer: int) -> Callable[[Tensor], Tensor]:
        def add(scores: Tensor) -> Tensor:  # nothing is pending where interventions are suspended
            return add_bias(scores, *self._pending.pop(layer)) if layer in self._pending else scores

        return add


class _Stop(Exception):
    """Ends a forward pass once the deepest layer asked for has been read."""


@contextmanager
def _hooked(point: Any, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a hook point call `function` inside the block, after the hooks that it has."""
    handle = point.add_hook(lambda tensor, hook: function(tensor), is_permanent=True)
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


def _own_tokenizer(bridge: TransformerBridge) -> Any:
    """Return the model's own tokenizer, without the start token that TransformerLens adds to its copy."""
    name = getattr(bridge.tokenizer, "name_or_path", None)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "TransformerLens's copy of the tokenizer puts a start token before every text, and the model's own was not "
            f'found at "{name}": give it, emoprobe.wrap(bridge, tokenizer)'
        ) from error


# The KV cache --------------------------------------------------------------------------------------------------------


def _remember(past: Cache, index: int, valuations: Tensor) -> Tensor:
    """Store the valuations (batch, keys, m) of the keys that are about to come in, and return those of all keys."""
    while len(past.layers) <= index:  # a cache made without a configuration grows as it is used
        past.layers.append(past.layer_class_to_replicate())
    layer = past.layers[index]
    if not hasattr(layer, "memory"):
        if layer.is_initialized and layer.get_seq_length() > 0:
            raise InputError(
                "this KV cache was filled outside the injection, so its keys have no valuations: start the generation "
                "inside the block"
            )
        memory = copy.deepcopy(layer)
        memory.is_initialized = False
        kind: Any = type(layer)
        layer.__class__ = _remembering(kind)
        layer.memory = memory
    layer.expecting = True
    keys = valuations[:, None]
    remembered: Tensor = layer.memory.update(keys, keys[..., :0])[0]
    return remembered[:, 0]


TOGETHER = "reset crop reorder_cache batch_repeat_interleave batch_select_indices offload prefetch activate_past_recording"


@cache
def _remembering(kind: type[CacheLayerMixin]) -> type[CacheLayerMixin]:
    """Return a subclass of a cache layer with a second layer of that kind, its memory, which holds valuations as keys.

    Whatever happens to the one, cropping, reordering and so on, happens to the other.
    """

    class Remembering(kind):  # type: ignore[misc]
        _layer_type = None  # else transformers would make this class its own for all caches
        memory: CacheLayerMixin
        expecting = False

        def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.expecting:
                raise InputError(
                    "this KV cache was filled inside an injection: go on using it inside the block, or start a new one"
                )
            self.expecting = False
            result: tuple[Tensor, Tensor] = super().update(*args, **kwargs)
            return result

    def together(name: str) -> Callable[..., None]:
        def method(self: Any, *args: Any, **kwargs: Any) -> None:
            getattr(super(Remembering, self), name)(*args, **kwargs)
            getattr(self.memory, name)(*args, **kwargs)

        return method

    for name in TOGETHER.split():
        if hasattr(kind, name):
            setattr(Remembering, name, together(name))
    return Remembering
