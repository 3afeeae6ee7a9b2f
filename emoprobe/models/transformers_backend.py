"""Live models on Hugging Face transformers.

Blocks and attention modules are found by structure. Residual streams are read and edited by forward hooks on the blocks.
A valuation bias goes in by folding (see `emoprobe.folding`): while a block is biased, its attention module looks at a copy
of its configuration that names an attention function of ours; that function widens queries, keys and values and calls the
model's own attention. The masks stay those that the model makes for its own attention, since its own configuration is not
touched. Key valuations are cached inside the keys, so that cropping, reordering and static caches stay right.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from emoprobe.errors import InputError
from emoprobe.folding import fold_keys, fold_queries
from emoprobe.interventions import AttentionBias, Forward, Intervention, ResidualEdit
from emoprobe.models.live import Batch, LiveModel

ATTENTION = "emoprobe"  # the name under which our attention function is registered


class TransformersModel(LiveModel):
    """A `PreTrainedModel` with a language-model head, read and edited through forward hooks."""

    backend = "transformers"

    def __init__(self, underlying: PreTrainedModel, tokenizer: Any, name: str | None = None) -> None:
        super().__init__()
        config = underlying.config.get_text_config()
        self.underlying = underlying
        self.tokenizer = tokenizer
        self.name = name or underlying.config.name_or_path or type(underlying).__name__
        self.n_layers = int(config.num_hidden_layers)
        self.d_model = int(config.hidden_size)
        self.n_heads = int(config.num_attention_heads)
        self.context_length = getattr(config, "max_position_embeddings", None)
        self._blocks = _find_blocks(underlying, self.n_layers)
        self._attentions: dict[int, nn.Module] = {}  # of the blocks that have been asked to take a bias
        self._hooked: set[int] = set()
        self._forward: Forward | None = None
        self._batch: Batch | None = None
        self._prompt_length: int | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.underlying.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.underlying.dtype
        return dtype

    # Running ---------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Run the model and return logits (batch, position, vocab)."""
        with self._given(batch):
            logits: Tensor = self.underlying(**self._inputs(batch), use_cache=False).logits
        return logits

    def streams(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Return the residual streams (layers, batch, position, d_model), stopping before the deepest one's block."""
        found: dict[int, Tensor] = {}
        deepest = max(layers)

        def keep(layer: int) -> Callable[[Tensor], None]:
            def read(stream: Tensor) -> None:
                found[layer] = stream
                if layer == deepest:
                    raise _Stop

            return read

        with ExitStack() as stack:
            for layer in set(layers):
                stack.enter_context(self._watch(layer, keep(layer)))
            self._run_until_stopped(batch)
        return torch.stack([found[layer] for layer in layers])

    def attention(self, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return attention outputs (layers, batch, position, d_model) and weights (layers, batch, heads, queries, keys)."""
        if self.dtype == torch.float64 and not batch.real.all():
            # Many models take the softmax in float32 even so, where a wholly masked row overflows and spreads.
            raise InputError("attention is read in float64 without padding only: give one text at a time")
        found: dict[int, tuple[Tensor, Tensor]] = {}
        deepest = max(layers)

        def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
            def read(module: nn.Module, args: Any, output: Any) -> None:
                if not isinstance(output, tuple) or output[1] is None:
                    raise InputError(
                        f"{type(module).__name__} of {self.name} does not give its attention weights"
                    )
                found[layer] = output[0], output[1]
                if layer == deepest:
                    raise _Stop

            return read

        with ExitStack() as stack:
            stack.enter_context(_eager(self.underlying))
            for layer in set(layers):
                stack.enter_context(self._attention(layer).register_forward_hook(keep(layer)))
            self._run_until_stopped(batch)
        outputs, weights = zip(*(found[layer] for layer in layers), strict=True)
        return torch.stack(outputs), torch.stack(weights)

    def _run_until_stopped(self, batch: Batch) -> None:
        with self._given(batch):
            try:
                self.underlying.base_model(**self._inputs(batch), use_cache=False)
            except _Stop:
                pass

    def generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        """Return prompt and continuation, (batch × sequences, position)."""
        options.setdefault("pad_token_id", self.pad_token_id)
        with self._given(batch, generating=True):
            ids: Tensor = self.underlying.generate(
                input_ids=batch.input_ids, attention_mask=batch.real.long(), **options
            )
        return ids

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
        # Models with learned positions number them from the first pad when they are not told otherwise.
        if "position_ids" in _parameters(type(self.underlying.base_model)):
            inputs["position_ids"] = batch.position_ids
        return inputs

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

    def _watch(self, layer: int, read: Callable[[Tensor], Any], replace: bool = False) -> Any:
        """Call `read` with the stream at `layer` and, with `replace`, put its result in its place. Returns a handle."""
        if layer == self.n_layers:

            def leave(module: nn.Module, args: Any, output: Any) -> Any:
                stream = output[0] if isinstance(output, tuple) else output
                result = read(stream)
                if replace:
                    return (result, *output[1:]) if isinstance(output, tuple) else result
                return None

            return self._blocks[-1].register_forward_hook(leave)

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = read(args[0] if args else kwargs["hidden_states"])
            if not replace:
                return None
            return ((result, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": result})

        return self._blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)

    def logit_lens(self, vectors: Tensor) -> Tensor:
        """Map residual vectors (…, d_model) to the logits they promote (…, vocab), the final norm's gain folded in."""
        head = self.underlying.get_output_embeddings()
        if head is None:
            raise InputError(
                f"{self.name} has no output embedding: the logit lens needs a language-model head"
            )
        gain = _gain(_find_final_norm(self.underlying, self._blocks), self.d_model)
        vectors = vectors.to(head.weight.device, torch.float32)
        with torch.no_grad():
            return (vectors * gain.to(vectors.device)) @ head.weight.float().T

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.underlying.named_parameters()

    # Intervening -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _place(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        hooked, forward = set(self._hooked), self._forward
        with ExitStack() as stack:
            stack.callback(setattr, self, "_forward", forward)
            stack.callback(setattr, self, "_hooked", hooked)
            if interventions and not hooked:
                base = self.underlying.base_model
                stack.enter_context(base.register_forward_pre_hook(self._before_pass, with_kwargs=True))
                stack.enter_context(base.register_forward_hook(self._after_pass))
            for layer in sorted({item.layer for item in interventions} - hooked):
                stack.enter_context(self._watch(layer, self._at(layer), replace=True))
            self._hooked = hooked | {item.layer for item in interventions}
            for layer in sorted({i.layer for i in interventions if isinstance(i, AttentionBias)}):
                stack.enter_context(_routed(self._attention(layer)))
            yield

    def _attention(self, layer: int) -> nn.Module:
        if layer not in self._attentions:
            self._attentions[layer] = _find_attention(self._blocks[layer], f"block {layer} of {self.name}")
        return self._attentions[layer]

    def _routes(self) -> "Iterator[tuple[int, _Route]]":
        return ((layer, _ROUTES[module]) for layer, module in self._attentions.items() if module in _ROUTES)

    def _before_pass(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(_parameters(type(base)), args, strict=False)) | kwargs
        inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        assert inputs is not None, "a model is called with input_ids or inputs_embeds"
        batch, length = inputs.shape[:2]
        past = given.get("past_key_values")
        start = int(past.get_seq_length()) if past is not None else 0
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            real = mask[:, start : start + length].bool()
        else:  # none, or one that the model's generation has already expanded
            real = torch.ones(batch, length, dtype=torch.bool, device=inputs.device)
        if self._prompt_length is not None:
            prompt = self._prompt_length
        else:  # called by the user: what fills an empty cache is the prompt
            prompt = length if start == 0 or self._forward is None else self._forward.prompt_length
        offsets = self._batch.offsets if self._batch is not None else None
        self._forward = Forward(real, given.get("input_ids"), start, prompt, offsets)
        for _, route in self._routes():
            route.pending = None  # what a pass that broke off has left

    def _after_pass(self, base: nn.Module, args: Any, output: Any) -> None:
        for layer, route in self._routes():
            if route.pending is not None:
                raise RuntimeError(
                    f"the attention of block {layer} of {self.name} never asked for its bias, so λ had no effect there: "
                    "this architecture computes attention outside transformers' attention interface"
                )

    def _at(self, layer: int) -> Callable[[Tensor], Tensor]:
        """Return what happens to the stream at `layer`: its edits in order, then the valuations of its biases."""

        def act(stream: Tensor) -> Tensor:
            assert self._forward is not None, "blocks run inside a pass of the model"
            here = [item for item in self._interventions if item.layer == layer]
            for item in here:
                if isinstance(item, ResidualEdit):
                    stream = item.apply(stream, self._forward)
            biases = [item for item in here if isinstance(item, AttentionBias)]
            if biases:
                values = [bias.valuation(stream, self._forward) for bias in biases]
                queries = [
                    bias.query_side(v).expand(-1, self.n_heads, -1, -1)
                    for bias, v in zip(biases, values, strict=True)
                ]
                _ROUTES[self._attention(layer)].pending = torch.cat(queries, -1), torch.cat(values, -1)
            return stream

        return act


class _Stop(Exception):
    """Ends a forward pass once the deepest layer asked for has been read."""


# Structure -----------------------------------------------------------------------------------------------------------


@cache
def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the parameters of a module's forward, without self."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _find_blocks(model: PreTrainedModel, n_layers: int) -> nn.ModuleList:
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise InputError(f"no list of {n_layers} decoder blocks was found in {type(model).__name__}")
    return lists[0]


def _find_attention(block: nn.Module, where: str) -> nn.Module:
    found = [
        module
        for module in block.modules()
        if "Attention" in type(module).__name__ and hasattr(module, "config") and hasattr(module, "layer_idx")
    ]
    if not found:
        raise InputError(f"{where} has no attention module that a bias could be put into")
    return found[0]


def _find_final_norm(model: PreTrainedModel, blocks: nn.ModuleList) -> nn.Module:
    # The last norm that stands beside the blocks; an embedding norm, where there is one, stands before them.
    parent = next(m for m in model.base_model.modules() if any(child is blocks for child in m.children()))
    norms = [child for child in parent.children() if "norm" in type(child).__name__.lower()]
    return norms[-1] if norms else nn.Identity()


def _gain(norm: nn.Module, width: int) -> Tensor:
    """Return the factor by which a norm scales each coordinate, (width,), found by asking it.

    A vector of alternating ±1 has mean 0 and mean square 1, so layer norm, RMS norm and RMS norm with 1 + weight all leave it
    as it is but for their gain and bias.
    """
    weight = next(norm.parameters(), torch.empty(0))
    probe = torch.ones(1, 1, width, dtype=weight.dtype, device=weight.device)
    probe[..., 1::2] = -1
    with torch.no_grad():
        gain: Tensor = (norm(probe) - norm(-probe)) / 2 * probe
    return gain.float().flatten()


# Attention -----------------------------------------------------------------------------------------------------------


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute its attention in the one way that gives the weights, inside the block."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


class _Route:
    """What our attention function must know of one biased attention module.

    `config` is the module's own; `pending` holds λ·v of the queries (batch, heads, queries, m) and v of the keys
    (batch, keys, m) of the pass under way, and is emptied when the attention asks for it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.config: PreTrainedConfig = module.config  # type: ignore[assignment]  # a plain attribute
        self.pending: tuple[Tensor, Tensor] | None = None

    def attention(self, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Return the attention function that the model itself would have called."""
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager
        )
        return function


_ROUTES: WeakKeyDictionary[nn.Module, _Route] = WeakKeyDictionary()


@contextmanager
def _routed(module: nn.Module) -> Iterator[None]:
    """Let this attention module call our attention function inside the block."""
    if module in _ROUTES:  # an enclosing block has done it
        yield
        return
    if getattr(module, "is_cross_attention", False) or getattr(module, "reorder_and_upcast_attn", False):
        raise InputError(
            f"{type(module).__name__} computes its attention outside transformers' attention interface"
        )
    route = _Route(module)
    ours = copy.copy(route.config)
    ours._attn_implementation_internal = ATTENTION
    with ExitStack() as stack:
        stack.callback(setattr, module, "config", route.config)
        stack.callback(_ROUTES.pop, module)
        _ROUTES[module] = route
        module.config = ours
        stack.enter_context(module.register_forward_pre_hook(_prepare_cache, with_kwargs=True))
        yield


def _prepare_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Make this layer of the KV cache, if there is one, keep key valuations inside its keys."""
    past = next((item for item in (*args, *kwargs.values()) if isinstance(item, Cache)), None)
    if past is None:
        return
    pending = _ROUTES[module].pending
    assert pending is not None, "the block's own hook runs before its attention"
    index: int = module.layer_idx  # type: ignore[assignment]
    while len(past.layers) <= index:  # a cache made without a configuration grows as it is used
        past.layers.append(past.layer_class_to_replicate())
    layer = past.layers[index]
    if not getattr(layer, "holds_valuations", False):
        if layer.is_initialized and layer.get_seq_length() > 0:
            raise InputError(
                "this KV cache was filled outside the injection, so its keys have no valuations: start the generation "
                "inside the block"
            )
        layer.__class__ = _valued(type(layer))
    layer.pending = pending[1]


@cache
def _valued(kind: "type[CacheLayerMixin]") -> "type[CacheLayerMixin]":
    """Return a subclass of a cache layer whose keys are widened by their valuations as they come in."""

    class Valued(kind):  # type: ignore[misc]
        holds_valuations = True
        pending: Tensor | None = None

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            if self.pending is None:
                raise InputError(
                    "this KV cache was filled inside an injection: go on using it inside the block, or start a new one"
                )
            pending, self.pending = self.pending, None
            key_states, value_states = fold_keys(key_states, value_states, pending)
            result: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return result

    return Valued


def _valuation_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run the model's own attention with λ·V_Q·V_Kᵀ folded into queries and keys; called by transformers."""
    route = _ROUTES[module]
    if kwargs.get("softcap") is not None:
        raise InputError(
            "this model caps its attention scores, and a folded bias would be capped with them: not supported"
        )
    assert route.pending is not None, "the block's own hook runs before its attention"
    (queries, keys), route.pending = route.pending, None
    width = query.shape[-1]
    scale = width**-0.5 if scaling is None else scaling
    if key.shape[-1] == width:  # no cache, or none that has widened them
        key, value = fold_keys(key, value, keys)
    query = fold_queries(query, queries, scale)
    output, weights = route.attention(module)(
        module, query, key, value, attention_mask, scaling=scale, **kwargs
    )
    return output[..., :width], weights


AttentionInterface.register(ATTENTION, _valuation_attention)
