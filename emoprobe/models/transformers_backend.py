"""Live models on Hugging Face transformers.

Residual streams are read and edited by forward hooks on the blocks; valuation biases are worked out there too and handed to
the block's attention. How blocks and attention modules are found stands in `transformers_structure`, how a bias gets into an
attention module and into the KV cache in `transformers_attention`.

The residual stream of a post-norm encoder (BERT) is what its blocks hand on: normalised at the end of each block, so that
layer 0 is the normalised embedding and layer n_layers the model's last hidden state.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward, Intervention
from emoprobe.models.live import Batch, LiveModel
from emoprobe.models.passes import act_on, describe_pass
from emoprobe.models.transformers_attention import ROUTES, Route, eager, routed
from emoprobe.models.transformers_structure import (
    AttentionSite,
    context_length_of,
    effect_of,
    find_attention,
    find_blocks,
    find_final_norm,
    find_trunk,
    first_position,
    gives_its_whole_output,
    is_encoder,
    parameters_of,
    ways_of_injection,
)


class TransformersModel(LiveModel):
    """A `PreTrainedModel`, read and edited through forward hooks."""

    backend = "transformers"

    def __init__(self, underlying: PreTrainedModel, tokenizer: Any, name: str | None = None) -> None:
        super().__init__()
        if underlying.config.is_encoder_decoder:
            raise InputError(
                f"{type(underlying).__name__} has an encoder and a decoder, and so two residual streams: not supported"
            )
        self._config = config = underlying.config.get_text_config()
        self.underlying = underlying
        self.tokenizer = tokenizer
        self.name = name or underlying.config.name_or_path or type(underlying).__name__
        self.n_layers = int(config.num_hidden_layers)
        self.d_model = int(config.hidden_size)
        self.n_heads = int(getattr(config, "num_attention_heads", 0))  # a model without attention has none
        self._first_position = first_position(underlying)
        self.context_length = context_length_of(config, self._first_position)
        self.is_encoder = is_encoder(underlying)
        self._blocks = find_blocks(underlying, self.n_layers)
        self._trunk = find_trunk(underlying, self._blocks)
        self._trunk_takes = parameters_of(type(self._trunk))
        self._takes_positions = "position_ids" in parameters_of(type(underlying.base_model))
        self._sites: dict[int, AttentionSite] = {}  # of the blocks that have been asked to take a bias
        self._proven: set[tuple[str, str]] = set()  # kinds of attention in which a bias was seen to work
        self._hooked: set[int] = set()
        self._forward: Forward | None = None
        self._batch: Batch | None = None
        self._prompt_length: int | None = None

    @property
    def device(self) -> torch.device:
        # Where accelerate keeps weights elsewhere between passes, they lie on no device, but run on one.
        hook = getattr(self.underlying.get_input_embeddings(), "_hf_hook", None)
        runs_on = getattr(hook, "execution_device", None)
        return torch.device(self.underlying.device if runs_on is None else runs_on)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.underlying.dtype
        return dtype

    @property
    def vocabulary_size(self) -> int:
        return int(self.underlying.get_input_embeddings().weight.shape[0])

    # Running ---------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Run the model and return logits (batch, position, vocab). Raises `InputError` for a model without a head."""
        if self._head() is None:
            raise InputError(
                f"{self.name} ({type(self.underlying).__name__}) has no language-model head, and so no logits: it can be "
                "probed and traced, or loaded with its head"
            )
        with self._turn(), self._given(batch):
            logits: Tensor = self.underlying(**self._inputs(batch), use_cache=False).logits
        return logits

    def streams_by_layer(self, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
        """Return the residual stream (batch, position, d_model) of each layer, stopping before the deepest one's block."""
        found: dict[int, Tensor] = {}
        deepest = max(layers)

        def keep(layer: int) -> Callable[[Tensor], None]:
            def read(stream: Tensor) -> None:
                found[layer] = stream
                if layer == deepest:
                    raise _Stop

            return read

        with self._turn(), ExitStack() as stack:
            for layer in set(layers):
                stack.enter_context(self._watch(layer, keep(layer)))
            self._run_until_stopped(batch)
        # With a device_map, layers lie on several devices; the batch and its mask lie on one.
        return [found[layer].to(batch.real.device) for layer in layers]

    def attention(self, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return attention outputs (layers, batch, position, d_model) and weights (layers, batch, heads, queries, keys)."""
        if self.dtype == torch.float64 and not batch.real.all():
            # Many models take the softmax in float32 even so, where a wholly masked row overflows and spreads.
            raise InputError("attention is read in float64 without padding only: give one text at a time")
        for layer in layers:
            if not gives_its_whole_output(self._blocks[layer], self._site(layer).module):
                raise InputError(
                    f"the attention of {self.name} does not give what it adds to the stream: not supported"
                )
        found: dict[int, tuple[Tensor, Tensor]] = {}
        deepest = max(layers)

        def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
            def read(module: nn.Module, args: Any, output: Any) -> None:
                if not isinstance(output, tuple) or output[1] is None or output[0].shape[-1] != self.d_model:
                    raise InputError(
                        f"{type(module).__name__} of {self.name} does not give its attention weights"
                    )
                found[layer] = output[0], output[1]
                if layer == deepest:
                    raise _Stop

            return read

        with self._turn(), ExitStack() as stack:
            stack.enter_context(eager(self.underlying))
            for layer in set(layers):
                stack.enter_context(self._site(layer).module.register_forward_hook(keep(layer)))
            self._run_until_stopped(batch)
        outputs, weights = (
            torch.stack([found[layer][part].to(batch.real.device) for layer in layers]) for part in (0, 1)
        )
        return outputs, weights

    def _run_until_stopped(self, batch: Batch) -> None:
        with self._given(batch):
            try:
                self.underlying.base_model(**self._inputs(batch), use_cache=False)
            except _Stop:
                pass

    def _generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        if self.is_encoder or not self.underlying.can_generate():
            what = "is an encoder" if self.is_encoder else "has no language-model head"
            raise InputError(
                f"{self.name} ({type(self.underlying).__name__}) {what}, and so cannot generate text"
            )
        options.setdefault("pad_token_id", self.pad_token_id)
        with self._turn(), self._given(batch, generating=True):
            ids: Tensor = self.underlying.generate(
                input_ids=batch.input_ids, attention_mask=batch.real.long(), **options
            )
        return ids

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
        # Models with learned positions number them from the first pad when they are not told otherwise.
        if self._takes_positions:
            inputs["position_ids"] = batch.position_ids + self._first_position
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
                result = read(self._checked(_first(output)))
                if not replace:
                    return None
                return result if isinstance(output, Tensor) else type(output)((result, *output[1:]))

            return self._blocks[-1].register_forward_hook(leave)

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = read(self._checked(args[0] if args else kwargs["hidden_states"]))
            if not replace:
                return None
            return ((result, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": result})

        return self._blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)

    def _checked(self, stream: Tensor) -> Tensor:
        if stream.dim() != 3:
            raise InputError(
                f"the blocks of {self.name} hand on {tuple(stream.shape)} numbers, not one residual stream (batch, position, "
                "width): not supported"
            )
        return stream

    def logit_lens(self, vectors: Tensor, *, folded: bool = True) -> Tensor:
        """Map residual vectors (…, d_model) to the logits they promote (…, vocab), with what the final norm does to them."""
        head, why = self._head(), self._why_no_lens()
        if why:
            raise InputError(f"no logit lens for {self.name}: {why}")
        norm = find_final_norm(self.underlying, self._blocks)
        with torch.no_grad(), align_module_device(norm), align_module_device(head):
            vectors = vectors.to(head.weight.device, torch.float32)
            if folded:
                gain, takes_mean_out = effect_of(norm, self.d_model)
                mean = vectors.mean(-1, keepdim=True) if takes_mean_out else 0.0
                vectors = (vectors - mean) * gain.to(vectors.device)
            logits: Tensor = vectors @ head.weight.float().T
        return logits

    def _why_no_lens(self) -> str:
        head = self._head()
        if head is None:
            return "there is no language-model head"
        if self.is_encoder or head.weight.shape[-1] != self.d_model:
            return "its head transforms the stream first"
        return ""

    def _head(self) -> Any:
        return self.underlying.get_output_embeddings()

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        # Tied weights are one, which shows only where they are loaded.
        tied = getattr(self.underlying, "all_tied_weights_keys", {})
        named = self.underlying.named_parameters()
        once = {name for name, weight in named if not (weight.is_meta and name in tied)}
        for path, module in self.underlying.named_modules():
            with align_module_device(module):  # brings offloaded weights here
                yield from (pair for pair in module.named_parameters(path, recurse=False) if pair[0] in once)

    def _found(self) -> dict[str, object]:
        """Return architecture, how each block takes a bias, and what can and cannot be done."""
        no_head = "no: there is no language-model head"
        no_text = "no: an encoder" if self.is_encoder else no_head
        writes = self.underlying.can_generate() and not self.is_encoder
        return {
            "architecture": type(self.underlying).__name__,
            "attention": getattr(self._config, "_attn_implementation", None),
            "sees": "all tokens (encoder)" if self.is_encoder else "earlier tokens",
            "capture and steer": f"yes, layers 0 to {self.n_layers}",
            **ways_of_injection(self._blocks, self._config),
            "logits": "yes" if self._head() is not None else no_head,
            "generate": "yes" if writes else no_text,
            "logit lens": f"no: {self._why_no_lens()}" if self._why_no_lens() else "yes",
        }

    # Intervening -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _place(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        biased = sorted({item.layer for item in interventions if isinstance(item, AttentionBias)})
        for layer in biased:
            self._prove(layer)
        hooked, forward = set(self._hooked), self._forward
        with ExitStack() as stack:
            stack.callback(setattr, self, "_forward", forward)
            stack.callback(setattr, self, "_hooked", hooked)
            if interventions and not hooked:
                stack.enter_context(
                    self._trunk.register_forward_pre_hook(self._before_pass, with_kwargs=True)
                )
                stack.enter_context(self._trunk.register_forward_hook(self._after_pass))
            for layer in sorted({item.layer for item in interventions} - hooked):
                stack.enter_context(self._watch(layer, self._at(layer), replace=True))
            self._hooked = hooked | {item.layer for item in interventions}
            for layer in biased:
                stack.enter_context(routed(self._site(layer), layer, self.n_heads))
            yield

    def _site(self, layer: int) -> AttentionSite:
        if layer not in self._sites:
            where = f"block {layer} of {self.name}"
            self._sites[layer] = find_attention(self._blocks[layer], layer, self._config, where)
        return self._sites[layer]

    def _routes(self) -> Iterator[Route]:
        return (ROUTES[site.module] for site in self._sites.values() if site.module in ROUTES)

    def _before_pass(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self._trunk_takes, args, strict=False)) | kwargs
        offsets = self._batch.offsets if self._batch is not None else None
        self._forward = describe_pass(given, self._forward, self._prompt_length, offsets)
        for route in self._routes():
            route.clear()  # what a pass that broke off has left

    def _after_pass(self, trunk: nn.Module, args: Any, output: Any) -> None:
        for route in self._routes():
            if route.queries is not None and not route.asked:
                raise RuntimeError(
                    f"the attention of block {route.layer} of {self.name} never asked for its bias, so λ had no effect "
                    "there: this architecture computes attention in a way that emoprobe does not know"
                )
            route.clear()

    def _at(self, layer: int) -> Callable[[Tensor], Tensor]:
        """Return what happens to the stream at `layer`: its edits in order, then the valuations of its biases."""

        def act(stream: Tensor) -> Tensor:
            here = [item for item in self._interventions if item.layer == layer]
            forward = _beside(self._forward, stream.device)
            stream, valuations = act_on(stream, here, forward)
            if valuations is not None:
                ROUTES[self._site(layer).module].give(*valuations, stream.dtype)
            return stream

        return act

    # Making sure -----------------------------------------------------------------------------------------------------

    def _prove(self, layer: int) -> None:
        """Make sure, once for each kind of attention, that a bias in this block works and keeps the future unseen.

        Two rows of six tokens that differ in the last one are run as deep as the block, with and without a bias. Raises
        `RuntimeError` if the attention never asks for the bias or does not change with it, or if a token sees a later one.
        """
        site = self._site(layer)
        kind = (site.kind, str(self._config._attn_implementation))
        if kind in self._proven:
            return
        self._proven.add(kind)
        try:
            plain, biased = self._try_out(layer, 0.0), self._try_out(layer, 1.0)
            scale = plain.abs().max()
            noise = min(0.01, 64 * torch.finfo(self.dtype).eps)
            if not (biased - plain).abs().max() > noise * scale:
                raise RuntimeError(
                    f"a bias in block {layer} of {self.name} has no effect on its attention ({site.kind})"
                )
            if not self.is_encoder and (biased[0, :-1] - biased[1, :-1]).abs().max() > 0.01 * scale:
                raise RuntimeError(
                    f"with a bias in block {layer} of {self.name} tokens see later ones ({site.kind})"
                )
        except BaseException:
            self._proven.discard(kind)
            raise

    def _try_out(self, layer: int, strength: float) -> Tensor:
        """Return what the attention of a block gives for two rows of made-up tokens, under a made-up bias alone."""
        # Spread over the vocabulary: neighbouring ids may all be special tokens, whose embeddings are hardly apart.
        step = max(1, self.vocabulary_size // 8)
        ids = (torch.arange(1, 7) * step).repeat(2, 1)
        ids[1, 5] += step
        ids = ids.to(self.device)
        batch = Batch(("", ""), ids, torch.ones_like(ids, dtype=torch.bool), None)
        values = 3 * torch.randn(1, 6, 1, generator=torch.Generator().manual_seed(0))
        bias = AttentionBias(
            layer, lambda x, _: values.expand(2, -1, -1).to(x.device, _wide(x.dtype)), strength
        )
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found.append(_first(output))
            if ROUTES[module].asked:  # else let the pass end, which reports it
                raise _Stop

        outer = self._interventions
        self._interventions = (bias,)
        try:
            with torch.no_grad(), self._place((bias,)):
                with self._site(layer).module.register_forward_hook(keep):
                    self._run_until_stopped(batch)
        finally:
            self._interventions = outer
        return found[0].float()


class _Stop(Exception):
    """Ends a forward pass once what was asked for has been read."""


def _first(output: Any) -> Tensor:
    """Return the stream, or the attention's output, among what a module gives."""
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _beside(forward: Forward | None, device: torch.device) -> Forward:
    """Return what the pass was given, on the device where a block lies."""
    assert forward is not None, "blocks run inside a pass of the model"
    if forward.real.device == device:
        return forward
    ids = None if forward.input_ids is None else forward.input_ids.to(device)
    return replace(forward, real=forward.real.to(device), input_ids=ids)
