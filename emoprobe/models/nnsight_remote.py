"""Live models whose weights lie on a server that speaks nnsight's protocol (NDIF, https://ndif.us), and never come here.

Only the configuration and the tokenizer are loaded. Each pass is one request: tokens and the interventions in place, written
down as nnsight operations (see `NnsightModel.edited`), go there; logits, streams or tokens come back. So whatever reads,
traces, probes and steers works as with a model on this machine, and what needs the weights themselves raises `InputError`:
the logit lens, attention weights, and learning. The server's key is nnsight's to find (NDIF_API_KEY); it is looked for here,
and never kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import nnsight
import torch
from nnsight.intervention.serialization import dumps
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Intervention, ResidualEdit
from emoprobe.models.live import Batch
from emoprobe.models.nnsight_backend import NnsightModel


class RemoteModel(NnsightModel):
    """An nnsight `TransformersModel` without weights, run by a server. `load_model(name, remote=True)` makes one.

    `remote` is nnsight's own: True for the server that it is configured for, or the address of another. Positions of edits may
    be "all", "last" or a mask anywhere, and "prompt" and "generated" in `generate`; not character spans, since a server is
    given no text.
    """

    watched = False  # a server knows nothing of this package

    def __init__(
        self,
        underlying: Any,
        tokenizer: Any,
        name: str,
        revision: str | None = None,
        remote: bool | str = True,
    ) -> None:
        super().__init__(underlying, tokenizer, name)
        self._revision, self._remote = revision, remote
        self._places = super()._paths()

    def _paths(self) -> tuple[str, str]:
        return (
            self._places
        )  # nnsight may load weights to try a request out, and then holds other modules of the same names

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # where inputs wait to be sent, and results arrive

    @property
    def dtype(self) -> torch.dtype:
        return self._inner.dtype

    @property
    def vocabulary_size(self) -> int:
        return self._inner.vocabulary_size

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (batch, position, vocab), without gradients."""
        model, inputs, remote = self._asked(batch), self._inner._inputs(batch), self._remote
        with torch.no_grad(), self._turn(), model.trace(inputs, remote=remote):
            logits = model.output.logits.save()
        return logits.detach()  # type: ignore[no-any-return]  # nnsight puts it there

    def streams_by_layer(self, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
        """Return the residual stream (batch, position, d_model) of each layer, stopping before the deepest one's block."""
        model, inputs, remote = self._asked(batch), self._inner._inputs(batch), self._remote
        path, ordered, deepest = self._paths()[1], sorted(set(layers)), self.n_layers
        with torch.no_grad(), self._turn(), model.trace(inputs, remote=remote) as tracer:
            found = nnsight.save([])
            blocks = model.get(path)
            for layer in ordered:
                if layer < deepest:
                    found.append(blocks[layer].input)
                else:
                    output = blocks[layer - 1].output
                    found.append(output[0] if isinstance(output, tuple) else output)
            tracer.stop()
        read = dict(zip(ordered, found, strict=True))
        return [read[layer].to("cpu") for layer in layers]

    def _generate_ids(self, batch: Batch, **options: Any) -> Tensor:
        """Return prompt and continuation, (batch × sequences, position)."""
        model, remote = self._asked(batch), self._remote
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
        options.setdefault("pad_token_id", self.pad_token_id)
        with torch.no_grad(), self._turn(), model.generate(inputs, remote=remote, **options) as tracer:
            ids = tracer.result.save()
        return ids  # type: ignore[no-any-return]

    def attention(self, batch: Batch, layers: Sequence[int]) -> NoReturn:
        """Raise `InputError`."""
        self._refuse("attention weights are not read")

    def logit_lens(self, vectors: Tensor, *, folded: bool = True) -> NoReturn:
        """Raise `InputError`."""
        self._refuse("the unembedding, and so the logit lens, is not here")

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Raise `InputError`."""
        self._refuse("its weights are not here, so that nothing is learned through it or counted of it")

    def fingerprint(self) -> str:
        """Return a short hash of name, revision and vocabulary: weights are not here to be read.

        So an artefact made remotely does not know a model on this machine for the same, and a revision that is not pinned, or
        a server that loads other weights under the same name, goes unnoticed.
        """
        named = json.dumps(["remote", self.name, self._revision, sorted(self.tokenizer.get_vocab().items())])
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    def _found(self) -> dict[str, object]:
        return {"runs": "remotely", "revision": self._revision or "the server's"}

    @contextmanager
    def _place(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        for item in interventions:
            spans = isinstance(item, ResidualEdit) and not isinstance(item.positions, (str, Tensor))
            if spans:
                self._refuse("a server is given no text, so that positions cannot be character spans")
        edited = self.edited(*interventions)
        try:
            dumps(edited._edits)
        except Exception as error:  # whatever a closure holds says in its own way that it cannot be sent
            why = f"{type(error).__name__}: {error}"
            raise InputError(
                f"an intervention on {self.name} cannot be sent to a server ({why}): let its functions hold tensors, numbers "
                "and functions only"
            ) from error
        yield

    @contextmanager
    def suspended(self) -> Iterator[RemoteModel]:
        """Run the block without the interventions that are in place, which is the untouched model."""
        with super(NnsightModel, self).suspended():
            yield self

    def _asked(self, batch: Batch) -> Any:
        """Return the nnsight model with the interventions in place as stored edits."""
        parts = {
            getattr(item, "positions", "all") for item in self.interventions if isinstance(item, ResidualEdit)
        }
        if batch.prompt_length is not None and not parts <= {"all", "last"}:
            self._refuse(
                'edits of "prompt" or "generated" act while a server generates, not when texts are scored'
            )
        return self.edited(*self.interventions) if self.interventions else self.underlying

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.name} runs remotely: {why}; load it on this machine for that")


def load_remote(name: str, revision: str | None, dtype: Any, attn_implementation: str | None) -> RemoteModel:
    """Return a live model that nnsight's server runs. Raises `InputError` without a key, and where no such model is known."""
    if not nnsight.CONFIG.API.APIKEY:
        raise InputError(
            f'"{name}" cannot be run remotely without a key: get one at https://login.ndif.us and set the environment variable '
            "NDIF_API_KEY"
        )
    chosen = {"revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    given = {key: value for key, value in chosen.items() if value is not None}
    try:
        underlying = nnsight.TransformersModel(name, task="text-generation", **given)
    except Exception as error:  # transformers and the hub raise of every kind
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f'no configuration and tokenizer of "{name}" could be had ({first}): check the name, the revision or the network'
        ) from error
    return RemoteModel(underlying, underlying.tokenizer, name, revision)
