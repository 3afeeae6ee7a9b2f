"""Putting a valuation bias into an attention module of transformers, and keeping its key valuations in the KV cache.

There are two routes, with the same result. Where the module asks transformers' attention interface for its function, the
bias is folded into queries and keys (see `emoprobe.folding`): inside the block, the module looks at a copy of its
configuration that names our function, which widens queries and keys and calls the model's own; the masks stay those that
the model makes, since its own configuration is not touched. Elsewhere (GPT-J, GPT-Neo, BLOOM, MPT, Falcon), and where
scores are capped (Gemma 2), the bias is added to the scores at the moment when the module takes their softmax: after
scaling, cap, ALiBi and mask, at a cost quadratic in the length. Either way key valuations are cached inside the keys, so
that cropping, reordering, selecting, repeating, sliding and static caches stay right by themselves.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor, constant_pad_nd, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from emoprobe.errors import InputError
from emoprobe.folding import fold_key, fold_keys, fold_queries, unfold_key
from emoprobe.models.transformers_structure import AttentionSite

ATTENTION = "emoprobe"  # the name under which our attention function is registered
AttentionFunction: TypeAlias = Callable[..., tuple[Tensor, Tensor | None]]


class Route:
    """What is known of one biased attention module during a pass.

    `queries` holds λ·v of the queries (batch, 1 or heads, queries, m), `keys` v of the keys (batch, keys, m); `asked` says
    whether the attention has asked for them. `config` is the module's own configuration.
    """

    def __init__(self, site: AttentionSite, layer: int, n_heads: int) -> None:
        self.layer, self.n_heads = layer, n_heads
        self.folds = site.folds
        self.config: Any = getattr(site.module, "config", None)
        self.queries: Tensor | None = None
        self.keys: Tensor | None = None
        self.asked = False
        self.masked = -torch.inf  # scores below it belong to masked keys

    def give(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> None:
        """Set what the pass under way adds to the scores; `dtype` is that of the model."""
        self.queries, self.keys, self.masked = queries, keys, torch.finfo(dtype).min / 2
        self.asked = False

    def clear(self) -> None:
        """Forget what has been given: the pass is over, or has broken off."""
        self.queries = self.keys = None

    def own_attention(self, module: nn.Module) -> AttentionFunction:
        """Return the attention function that the model itself would have called."""
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function: AttentionFunction = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation_internal, eager
        )
        return function


ROUTES: dict[nn.Module, Route] = {}
"""The attention modules that are biased at the moment."""


@contextmanager
def routed(site: AttentionSite, layer: int, n_heads: int) -> Iterator[None]:
    """Let this attention module ask for its bias inside the block."""
    module = site.module
    if module in ROUTES:  # an enclosing block has done it
        yield
        return
    route = Route(site, layer, n_heads)
    with ExitStack() as stack:
        stack.callback(ROUTES.pop, module)
        ROUTES[module] = route
        stack.enter_context(_asking_us(module, route) if site.folds else _watched(module, route))
        stack.enter_context(module.register_forward_pre_hook(_prepare_cache, with_kwargs=True))
        yield


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
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


# The folded route ----------------------------------------------------------------------------------------------------


@contextmanager
def _asking_us(module: nn.Module, route: Route) -> Iterator[None]:
    """Let the module find our attention function where it looks for its own."""
    ours = copy.copy(route.config)
    ours._attn_implementation_internal = ATTENTION
    module.config = ours
    try:
        yield
    finally:
        module.config = route.config


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
    route = ROUTES[module]
    own = route.own_attention(module)
    if route.queries is None:  # routed, but not biased in this pass
        return own(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("softcap") is not None:
        raise InputError(
            f"block {route.layer} caps its attention scores unannounced, and a folded bias would be capped too"
        )
    assert route.keys is not None, "queries and keys are given together"
    route.asked = True  # possibly more than once, as in differential attention
    width, value_width = query.shape[-1], value.shape[-1]
    scale = width**-0.5 if scaling is None else scaling
    if key.shape[-1] == width:  # no cache, or none that has widened them
        key, value = fold_keys(key, value, route.keys)
    else:
        value_width -= key.shape[-1] - width
    query = fold_queries(query, route.queries, scale)
    output, weights = own(module, query, key, value, attention_mask, scaling=scale, **kwargs)
    return output[..., :value_width].contiguous(), weights  # some models take a view of it


AttentionInterface.register(ATTENTION, _valuation_attention)


# The route at the softmax --------------------------------------------------------------------------------------------


@contextmanager
def _watched(module: nn.Module, route: Route) -> Iterator[None]:
    """Watch for the softmax while the module's forward runs."""
    original, own = module.forward, vars(module).get("forward")

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _AtSoftmax(route):
            return original(*args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


class _AtSoftmax(TorchFunctionMode):
    """Adds the bias to attention scores when their softmax is asked for, alone or within fused attention."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.route = route

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.route.queries is not None:
            if function in (torch.nn.functional.softmax, torch.softmax, Tensor.softmax) and args:
                args = (self._biased(args[0]), *args[1:])
            elif function is scaled_dot_product_attention:
                args, kwargs = self._masked(*args, **kwargs)
        return function(*args, **kwargs)

    def _ask(self) -> None:
        if self.route.asked:
            raise InputError(
                f"block {self.route.layer} takes several softmaxes over its keys: it is not clear which one a bias is meant for"
            )
        self.route.asked = True

    def _bias(self) -> Tensor:
        assert self.route.queries is not None and self.route.keys is not None, "given together"
        return self.route.queries.expand(-1, self.route.n_heads, -1, -1) @ self.route.keys.mT[:, None]

    def _biased(self, scores: Tensor) -> Tensor:
        bias = self._bias()
        if scores.numel() != bias.numel() or scores.shape[-2:] != bias.shape[-2:]:
            return scores  # another softmax, such as that of a router
        self._ask()
        summed = (scores + bias.reshape(scores.shape)).to(scores.dtype)
        return torch.where(scores <= self.route.masked, scores, summed)

    def _masked(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bias = self._bias().to(query.dtype)
        self._ask()
        if is_causal:
            attn_mask = torch.ones(
                query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device
            ).tril()
        if attn_mask is not None:
            seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > self.route.masked
            base = 0 if attn_mask.dtype == torch.bool else attn_mask
            bias = torch.where(seen, bias + base, torch.finfo(bias.dtype).min)
        return (query, key, value, bias, dropout_p, False), kwargs


# The KV cache --------------------------------------------------------------------------------------------------------


def _prepare_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Make this layer of the KV cache, if there is one, keep key valuations inside its keys."""
    past = next((item for item in (*args, *kwargs.values()) if isinstance(item, Cache)), None)
    route = ROUTES[module]
    if past is None or route.queries is None:
        return
    while len(past.layers) <= route.layer:  # a cache made without a configuration grows as it is used
        past.layers.append(past.layer_class_to_replicate())
    layer = past.layers[route.layer]
    if not getattr(layer, "holds_valuations", False):
        if layer.is_initialized and layer.get_seq_length() > 0:
            raise InputError(
                "this KV cache was filled outside the injection, so its keys have no valuations: start the generation "
                "inside the block"
            )
        layer.__class__ = _valued(type(layer))
    layer.route = route


_VALUED: "dict[type[CacheLayerMixin], type[CacheLayerMixin]]" = {}


def _valued(kind: "type[CacheLayerMixin]") -> "type[CacheLayerMixin]":
    """Return the subclass of a cache layer whose keys are widened by their valuations as they come in."""
    if kind not in _VALUED:
        _VALUED[kind] = _make_valued(kind)
    return _VALUED[kind]


def _make_valued(kind: "type[CacheLayerMixin]") -> "type[CacheLayerMixin]":

    class Valued(kind):  # type: ignore[misc]
        _layer_type = None  # or the library would take this for its own class of that type
        holds_valuations = True
        route: Route | None = None  # set anew for each pass

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            route, self.route = self.route, None
            if route is None or route.keys is None:
                raise InputError(
                    "this KV cache was filled inside an injection: go on using it inside the block, or start a new one"
                )
            width, m = key_states.shape[-1], route.keys.shape[-1]
            wide = fold_key(key_states, route.keys)
            if route.folds:
                value_states = constant_pad_nd(value_states, (0, wide.shape[-1] - width))
            keys, values = super().update(wide, value_states, *args, **kwargs)
            if not route.folds:  # this attention wants its keys as they were; the softmax is told of the rest
                keys, route.keys = unfold_key(keys, width, m)
            return keys, values

    return Valued
