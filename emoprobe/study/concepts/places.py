"""Prompts with named places in them, and what probes say there.

A place is a span of characters; what is read there is the mean over the tokens that overlap it, so that a place of one
character is the one token which holds it. Prompts of chat models are in their own template, those of other models in the form
"Human: …", "Assistant:", so that the position before the reply (the colon of the paper's figures) is always there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from emoprobe.activations import stream_residuals
from emoprobe.errors import InputError
from emoprobe.interventions import Span
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.probes.readout import read_stream

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prompt:
    """A text and the places in it that are read: name -> (start, end) in characters, one or several."""

    text: str
    places: Mapping[str, Span]

    def with_place(self, name: str, words: str, occurrence: int = 0) -> Prompt:
        """Return the prompt with one more place: where `words` stand in it, the first time or a later one.

        Raises `InputError` where they do not stand in it so often.
        """
        start = -1
        for _ in range(occurrence + 1):
            start = self.text.find(words, start + 1)
            if start < 0:
                raise InputError(f"{words!r} does not stand {occurrence + 1} times in {self.text!r}")
        return Prompt(self.text, {**self.places, name: (start, start + len(words))})


def turn(model: LiveModel, user: str, reply: str = "") -> Prompt:
    """Return one turn of a conversation, up to where the reply begins, or with the reply.

    Its places are "user" (all of the user's words), "user_end" (their last character), "before_reply" (the last character
    before the reply: the colon after "Assistant" where the tokenizer has no chat template) and, where one is given, "reply".
    """
    if getattr(model.tokenizer, "chat_template", None):
        chat = model.chat_text([{"role": "user", "content": user}])
        text, (start, end) = chat.text, chat.spans[0]
    else:
        text, start = f"Human: {user}\n\nAssistant:", len("Human: ")
        end = start + len(user)
        reply = f" {reply}" if reply else ""
    places = {"user": (start, end), "user_end": (end - 1, end), "before_reply": (len(text) - 1, len(text))}
    if reply:
        places["reply"] = (len(text), len(text) + len(reply))
    return Prompt(text + reply, places)


def read_at(
    model: LiveModel,
    probes: ProbeSet,
    prompts: Sequence[Prompt],
    places: Sequence[str],
    layers: Sequence[int],
    *,
    kind: str = "centred_cosine",
    concepts: Sequence[str] | None = None,
    batch_size: int = 32,
) -> Floats:
    """Read probes out at the same places of several prompts: (prompts, places, layers, concepts).

    `kind` is a unit of `emoprobe.trace`; cosines and z-scores are taken token by token, then averaged over a place. Raises
    `InputError` for a tokenizer that does not say where its tokens lie, and a place where no token is.
    """
    probes.check_model(model)
    chosen = list(probes.concepts if concepts is None else concepts)
    read = np.empty((len(prompts), len(places), len(layers), len(chosen)))
    for part in stream_residuals(model, [prompt.text for prompt in prompts], layers, batch_size=batch_size):
        values = torch.stack(
            [read_stream(probes, part.stream[i], layer, kind, chosen) for i, layer in enumerate(layers)]
        )
        if part.batch.offsets is None:
            raise InputError(f"{model.name}: its tokenizer does not say where tokens lie; load a fast one")
        for row, index in enumerate(part.indices):
            for column, place in enumerate(places):
                held = _overlapping(part.batch.offsets[row], prompts[index].places[place])
                if not held:
                    raise InputError(
                        f"no token of {prompts[index].text!r} lies at its place {place!r}: it may be too long for the model"
                    )
                read[index, column] = values[:, row, held].double().mean(1).cpu().numpy()
    return read


def _overlapping(tokens: Sequence[Span], place: Span) -> list[int]:
    start, end = place
    return [position for position, (a, b) in enumerate(tokens) if a < end and start < b]
