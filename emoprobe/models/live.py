"""What every live model can do, whichever library runs it.

`LiveModel` holds what is the same for all backends: tokenising with left padding (so that real tokens are aligned at the
right and the last position is always real), capture, generation of text, nesting of interventions. A backend says how a
batch is run, where the residual streams lie, and how interventions are placed and taken away again.
"""

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor
from typing_extensions import Self

from emoprobe.activations import Pool, capture, mean_norms
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Intervention, ResidualEdit, Span
from emoprobe.layers import Layers
from emoprobe.models.chat import Chat, render
from emoprobe.texts import check_strings

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Encoding

HEADROOM = 2
"""How many times the context of a model is tokenised of a text that is longer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokenised texts, padded on the left: `input_ids` and `real` are (batch, position).

    `prompt_length` says where the prompts end in a batch that also holds what follows them; None: all of it is prompt.
    """

    texts: tuple[str, ...]
    input_ids: Tensor
    real: Tensor
    offsets: Sequence[tuple[Span, ...]] | None
    prompt_length: int | None = None

    @property
    def position_ids(self) -> Tensor:
        """Position of each token in its own text, whatever the padding."""
        return (self.real.long().cumsum(-1) - 1).clamp(min=0)

    def repeated(self, count: int) -> Self:
        """Return the batch with its rows, as a whole, `count` times below each other."""
        return replace(
            self,
            texts=self.texts * count,
            input_ids=self.input_ids.repeat(count, 1),
            real=self.real.repeat(count, 1),
            offsets=self.offsets and _repeated(self.offsets, count),
        )

    def counted(self, start: int = 1) -> Tensor:
        """Return which positions belong into a statistic, boolean (batch, position).

        These are the real tokens from the `start`-th of each text on, or its last one where it has no more than `start`.
        """
        length = self.real.sum(-1, keepdim=True)
        return self.real & (self.position_ids >= torch.clamp(length - 1, max=start))


class Tokens(NamedTuple):
    """Tokens of one text: their numbers, and what the tokenizer knows of them where it says which characters they hold."""

    ids: list[int]
    encoding: "Encoding | None"


class Offsets(Sequence[tuple[Span, ...]]):
    """Which characters of its text each position of a batch holds, worked out for a text when it is asked for.

    Most passes ask for none, and a pair of Python numbers for each token costs as much as reading it.
    """

    def __init__(self, tokens: Sequence[Tokens], width: int) -> None:
        self._tokens, self._width = tokens, width

    def __len__(self) -> int:
        return len(self._tokens)

    def __mul__(self, count: int) -> "Offsets":
        return Offsets(list(self._tokens) * count, self._width)

    @overload
    def __getitem__(self, row: int) -> tuple[Span, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[tuple[Span, ...], ...]: ...
    def __getitem__(self, row: int | slice) -> tuple[Any, ...]:
        if isinstance(row, slice):
            return tuple(self[one] for one in range(len(self))[row])
        ids, encoding = self._tokens[row]
        assert encoding is not None
        return ((0, 0),) * (self._width - len(ids)) + tuple(encoding.offsets[: len(ids)])


def _repeated(offsets: Sequence[tuple[Span, ...]], count: int) -> Sequence[tuple[Span, ...]]:
    return offsets * count if isinstance(offsets, Offsets) else tuple(offsets) * count


class LiveModel(ABC):
    """A language model that can be read and intervened in. Make one with `emoprobe.load_model` or `emoprobe.wrap`."""

    backend: str
    name: str
    n_layers: int
    d_model: int
    n_heads: int
    tokenizer: Any
    underlying: Any
    """The object this wraps; its weights and settings are never changed outside an `intervene` block."""
    context_length: int | None
    basis: str = "raw"
    """Coordinates of the residual stream: "raw" as in the checkpoint, or what a library's processing has made of it."""
    watched: bool = True
    """Whether `generate` may be watched on its way: its logits looked at, its tokens read as they come."""

    def __init__(self) -> None:
        self._interventions: tuple[Intervention, ...] = ()
        self._passing = RLock()  # held while the model runs
        self._intervening: int | None = None  # the thread whose interventions are in place
        self._reference_norms: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_passing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _passing=RLock())  # a copy runs by itself

    # What a backend provides -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of the residual stream."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many tokens there are embeddings for."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Run the model and return logits (batch, position, vocab), with gradients where they are wanted."""

    @abstractmethod
    def streams_by_layer(self, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
        """Return the residual stream (batch, position, d_model) of each layer, running no deeper than needed."""

    @abstractmethod
    def attention(self, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what the attention of blocks gives and what it looks at, running no deeper than needed.

        These are the outputs after the output projection, (layers, batch, position, d_model), and the weights (layers,
        batch, heads, queries, keys), each under the active interventions. Weights take memory quadratic in the length.
        """

    def generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        """Return prompt and continuation, (batch × sequences, position).

        Raises `InputError` for an encoder, and for more `max_new_tokens` than the model can read behind the longest prompt.
        """
        longest, more = int(batch.real.sum(-1).max()), options.get("max_new_tokens") or 0
        if self.context_length is not None and longest + more > self.context_length:
            raise InputError(
                f"a prompt of {longest} tokens and max_new_tokens={more} are more than the {self.context_length} that "
                f"{self.name} reads: give max_new_tokens={max(self.context_length - longest, 0)} or less, or a shorter prompt"
            )
        return self._generate_ids(batch, **options)

    @abstractmethod
    def _generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        """Return prompt and continuation, as `generate_ids` does, which has looked whether there is room for it."""

    @abstractmethod
    def logit_lens(self, vectors: Tensor, *, folded: bool = True) -> Tensor:
        """Map residual vectors (…, d_model) to the logits that they promote (…, vocab), float32.

        What the final norm does to a direction is folded in: its gain and, where it takes the mean out of the stream (layer
        norm), that as well; not its division by the stream's size. With `folded=False` the unembedding alone is read.
        """

    @abstractmethod
    def _place(self, interventions: Sequence[Intervention]) -> AbstractContextManager[None]:
        """Make the model ready for these interventions, on top of those already active."""

    @abstractmethod
    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's named weights."""

    # What all share --------------------------------------------------------------------------------------------------

    def streams(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Return the residual streams (layers, batch, position, d_model), running no deeper than needed."""
        return torch.stack(self.streams_by_layer(batch, layers))

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Batch:
        """Tokenise texts with the tokenizer's own special tokens and pad on the left.

        Raises `InputError` for an empty text, and for one longer than the model's context unless `truncate` is set (then its
        tail is cut off).
        """
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        return self.padded(texts, self.encode(texts, truncate=truncate))

    def encode(self, texts: Sequence[str], *, truncate: bool = False, first: int = 0) -> list[Tokens]:
        """Tokenise texts, each by itself; options and errors, which count texts from `first`, are those of `tokenize`."""
        check_strings(texts, first)
        encoded = self._encoded(texts, truncate)
        ids: list[list[int]] = encoded["input_ids"]
        self._check_lengths(ids, truncate, first)
        self._check_vocabulary(ids, first)
        limit = self.context_length if truncate else None
        about = encoded["encodings"] or [None] * len(ids)
        return [Tokens(row[:limit], one) for row, one in zip(ids, about, strict=True)]

    def in_order(self, lengths: Sequence[int]) -> list[int]:
        """Return rows from the shortest to the longest, or as they are where an intervention tells prompts apart."""
        if any(isinstance(item, ResidualEdit) and item.by_prompt for item in self._interventions):
            return list(range(len(lengths)))
        return sorted(range(len(lengths)), key=lengths.__getitem__)

    def padded(self, texts: Sequence[str], tokens: Sequence[Tokens]) -> Batch:
        """Return texts and their tokens as one batch, padded on the left."""
        ids = [row for row, _ in tokens]
        width = max(map(len, ids))
        before = [width - len(row) for row in ids]
        pad = self.pad_token_id  # looked up once: transformers takes as long to say it as to read a token
        input_ids = torch.tensor([[pad] * n + row for n, row in zip(before, ids, strict=True)])
        real = torch.arange(width) >= torch.tensor(before)[:, None]
        offsets = None if tokens[0].encoding is None else Offsets(tokens, width)
        return Batch(tuple(texts), input_ids.to(self.device), real.to(self.device), offsets)

    def _encoded(self, texts: Sequence[str], truncate: bool) -> dict[str, Any]:
        """Return `input_ids` and `encodings` of texts; of one that is to be cut, no more of it than can be needed.

        No token has more characters than the longest of the vocabulary, so that the head of a text says what its first tokens
        are, unless the tokenizer drops characters; then the whole is read.
        """

        def encode(parts: Sequence[str]) -> dict[str, Any]:
            found = self.tokenizer(list(parts), add_special_tokens=True, verbose=False)
            return {"input_ids": found["input_ids"], "encodings": getattr(found, "encodings", None)}

        limit = self.context_length
        if not truncate or limit is None:
            return encode(texts)
        heads = [text[: HEADROOM * limit * self._longest_token] for text in texts]
        encoded = encode(heads)
        for row, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if len(head) < len(text) and len(encoded["input_ids"][row]) < HEADROOM * limit:
                whole = encode([text])
                for key in encoded:
                    if encoded[key]:
                        encoded[key][row] = whole[key][0]
        return encoded

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def chat_text(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> Chat:
        """Return a conversation in the tokenizer's chat template, with the span of each message. See `emoprobe.models.chat`."""
        return render(self.tokenizer, messages, add_generation_prompt)

    def info(self) -> "pd.DataFrame":
        """Return what was found: one row per property ("what", "found"); capabilities say yes, or no and why."""
        import pandas as pd  # not before tables are wanted: it takes a third of a second

        rows = {
            "model": self.name,
            "backend": self.backend,
            "blocks": self.n_layers,
            "width": self.d_model,
            "heads": self.n_heads,
            "context": self.context_length or "not limited",
            "type": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            **self._found(),
            "chat template": "yes" if getattr(self.tokenizer, "chat_template", None) else "no",
        }
        return pd.DataFrame({"what": list(rows), "found": [str(value) for value in rows.values()]})

    def _found(self) -> dict[str, object]:
        """Return what else a backend has to say of a model, for `info`."""
        return {}

    def token_spans(self, batch: Batch) -> tuple[tuple[Span, ...], ...]:
        """Return which characters of its text each position of a batch holds; equal ends for none.

        Raises `InputError` for a tokenizer that does not say.
        """
        if batch.offsets is None:
            raise InputError(f"{self.name}: its tokenizer does not say where tokens lie; load a fast one")
        return tuple(batch.offsets)

    @property
    def pad_token_id(self) -> int:
        """Token put at padding, where no real token ever sees it."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def _check_lengths(self, ids: list[list[int]], truncate: bool, first: int) -> None:
        empty = [row for row, tokens in enumerate(ids) if not tokens]
        if empty:
            raise InputError(f"text {first + empty[0]} gives no token at all: leave it out")
        longest = max(map(len, ids))
        if self.context_length is None or longest <= self.context_length:
            return
        if not truncate:
            row = first + max(range(len(ids)), key=lambda row: len(ids[row]))
            raise InputError(
                f"text {row} has {longest} tokens, but {self.name} reads at most {self.context_length}: shorten it"
            )
        count = sum(len(row) > self.context_length for row in ids)
        warnings.warn(
            f"{count} of {len(ids)} texts are longer than the {self.context_length} tokens {self.name} reads and were cut",
            stacklevel=4,
        )

    def _check_vocabulary(self, ids: list[list[int]], first: int) -> None:
        size = self.vocabulary_size
        for row, tokens in enumerate(ids, first):
            if max(tokens) >= size:
                raise InputError(
                    f"text {row} has token {max(tokens)}, but {self.name} knows {size}: its tokenizer is another model's; load "
                    "the model's own"
                )

    def logits(self, texts: str | Sequence[str]) -> Tensor:
        """Return float32 logits (batch, position, vocab).

        Real tokens are aligned at the right, so `[:, -1]` predicts the next token of every text; positions left of a text's
        first token hold padding and mean nothing.
        """
        with torch.no_grad():
            return self.forward(self.tokenize(texts)).float()

    def generate(self, prompts: str | Sequence[str], **generation_options: Any) -> str | list[str]:
        """Continue one prompt or several; return the continuations, without the prompts.

        `generation_options` are those of `transformers` (max_new_tokens, do_sample, num_beams, num_return_sequences, …). With
        several returned sequences the list holds those of the first prompt first. Raises `InputError` where the model prefers
        no token to any other, as one does that is pushed out of all bounds, and as `generate_ids` does.
        """
        batch = self.tokenize(prompts)
        if self.watched:
            given = generation_options.get("logits_processor") or ()
            generation_options["logits_processor"] = [*given, check_preference]
        with torch.no_grad():
            ids = self.generate_ids(batch, **generation_options)
        texts: list[str] = self.tokenizer.batch_decode(
            ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True
        )
        return texts[0] if isinstance(prompts, str) and len(texts) == 1 else texts

    def capture(
        self,
        texts: Sequence[str],
        layers: Layers = "all",
        pool: Pool = "mean",
        *,
        start: int = 1,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Return pooled residual streams, float32 (texts, layers, d_model) on the CPU. See `emoprobe.activations.capture`."""
        return capture(self, texts, layers, pool, start=start, batch_size=batch_size, progress=progress)

    @contextmanager
    def intervene(self, *interventions: Intervention) -> Iterator[Self]:
        """Run the block with these interventions in place, on top of those of any enclosing block.

        Leaving the block, by whatever way, gives back the untouched model. Interventions of strength 0 are not placed at all,
        so the model stays what it was to the last bit. The block belongs to the thread that runs it: until it is left, the
        model raises `InputError` for any other that would run it or intervene in it, and would otherwise see, or change, what
        it did not ask for.
        """
        check_interventions(interventions, self.n_layers)
        wanted = [i for i in interventions if not (isinstance(i, AttentionBias) and i.is_zero)]
        if not wanted:
            yield self
            return
        with ExitStack() as stack:
            with self._turn():
                stack.callback(self._leave, self._interventions, self._intervening)
                self._intervening = get_ident()
            self._interventions = (*self._interventions, *wanted)
            with self._place(wanted):
                yield self

    def _leave(self, interventions: tuple[Intervention, ...], thread: int | None) -> None:
        self._interventions, self._intervening = interventions, thread

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one thread at a time run the model, and none while another has interventions in place."""
        with self._passing:
            if self._intervening not in (None, get_ident()):
                raise InputError(
                    f"another thread is inside an intervention on {self.name}: wait until it has left the block, or give each "
                    "thread a model of its own"
                )
            yield

    @contextmanager
    def suspended(self) -> Iterator[Self]:
        """Run the block without the interventions that are in place, which is the untouched model to the last bit."""
        if not self._interventions:
            yield self
            return
        with self._turn():
            outer, self._interventions = self._interventions, ()
        try:
            yield self
        finally:
            self._interventions = outer

    def residual_norms(self) -> Tensor:
        """Return the mean L2 norm of the residual stream at layers 0 … n_layers, over the package's reference passages.

        First tokens are left out: in most models they are attention sinks, whose norm is many times that of the others.
        Measured once without interventions and kept.
        """
        if self._reference_norms is None:
            from emoprobe.models.reference import PASSAGES

            if self._interventions:
                raise InputError(
                    "call model.residual_norms() before entering an intervention, which would change it"
                )
            self._reference_norms = mean_norms(self, PASSAGES)
        return self._reference_norms

    def check_basis(self, basis: str, what: str) -> None:
        """Raise `InputError` if `what`, such as "these probes", belongs to residual streams of another basis than this model's.

        Vectors fitted in one basis mean something else in the other, although widths and layers agree.
        """
        if basis != self.basis:
            raise InputError(
                f"{what} cannot be used with {self.name}: made for the {basis} residual stream, and that of this model is "
                f"{self.basis}. TransformerLens's weight processing (enable_compatibility_mode) takes the mean out of it: use "
                "a model that was treated alike, or fit anew on this one"
            )

    def fingerprint(self) -> str:
        """Return a short hash of weights and vocabulary, to tell whether an artefact belongs to this model.

        Only names, shapes and a few entries of each weight are read, so that it takes seconds for large models too.
        """
        digest = hashlib.sha256()
        for name, weight in self.named_weights():
            weight = weight.detach()
            if type(weight) is not Tensor:  # quantised, of a type that may not be cut into pieces
                weight = weight.dequantize()
            flat = weight.reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
            digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.tobytes())
        digest.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        return digest.hexdigest()[:16]

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """Those in place at the moment, the outermost block's first."""
        return self._interventions

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name}: {self.n_layers} blocks, width {self.d_model}, {self.n_heads} heads, "
            f"{self.dtype}, {self.device}>"
        )


def check_preference(ids: Tensor, logits: Tensor) -> Tensor:
    """Return logits (batch, vocab) as they are; raise `InputError` where they prefer no token: all alike, or not finite."""
    highest, lowest = logits.amax(-1), logits.amin(-1)
    # Prompt lookup asks what is banned with made-up logits that are all 1; those of a broken model are all 0.
    asked_for_bans = (highest == 1) & (lowest == 1)
    if not (highest.isfinite() & (highest > lowest) | asked_for_bans).all():
        raise InputError(
            "the model prefers no token to any other, for its logits are all alike or not finite: lower the strength of what "
            "intervenes, or load the model in float32 or bfloat16"
        )
    return logits


def check_interventions(interventions: Sequence[object], n_layers: int) -> None:
    """Raise `InputError` unless all are interventions at layers that exist."""
    for item in interventions:
        if not isinstance(item, (ResidualEdit, AttentionBias)):
            raise InputError(
                f"intervene takes ResidualEdit and AttentionBias values, not {type(item).__name__}: "
                "emoprobe.steering.add and emoprobe.valattn.biases make them"
            )
        last = n_layers - isinstance(item, AttentionBias)
        if not 0 <= item.layer <= last:
            raise InputError(f"layer {item.layer} does not exist for {type(item).__name__}: give 0 to {last}")
