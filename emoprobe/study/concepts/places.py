"""Prompts with named places in them, and what probes say there, beside what random directions say there.

A place is a span of characters; what is read there is the mean over the tokens that overlap it, so that a place of one
character is the one token which holds it. Prompts of chat models are in their own template, those of other models in the form
"Human: …", "Assistant:", so that the position before the reply (the colon of the paper's figures) is always there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoprobe.activations import stream_residuals
from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.interventions import Span, overlapping
from emoprobe.layers import nearest_to_depth
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.probes.readout import read_stream

Floats = NDArray[np.float64]
Place = Span | Sequence[Span]
CONTROLS = 20
"""Sets of random directions beside each set of probes."""


@dataclass(frozen=True)
class Prompt:
    """A text and the places in it that are read: name -> (start, end) in characters, or several such spans."""

    text: str
    places: Mapping[str, Place]

    def with_place(self, name: str, words: str, after: int = 0) -> Prompt:
        """Return the prompt with one more place: where `words` first stand in it, at character `after` or later.

        Raises `InputError` where they do not.
        """
        start = self.text.find(words, after)
        if start < 0:
            raise InputError(f"{words!r} does not stand in {self.text!r} after character {after}")
        return Prompt(self.text, {**self.places, name: (start, start + len(words))})

    def span(self, name: str) -> Span:
        """Return where a place begins and where it ends, in characters, whatever lies between its spans."""
        spans = _spans(self.places[name])
        return spans[0][0], spans[-1][1]

    def at_end_of(self, name: str) -> Prompt:
        """Return the prompt with a place cut down to its last character: the token at which all of it has been read."""
        _, end = self.span(name)
        return Prompt(self.text, {**self.places, name: (end - 1, end)})


def plain(text: str) -> Prompt:
    """Return a text as it is; its places are "text" (all of it) and "last" (its last character)."""
    return Prompt(text, {"text": (0, len(text)), "last": (len(text) - 1, len(text))})


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


def chosen_layer(probes: ProbeSet, layer: int | float | None = None) -> int:
    """Return the layer to read at: the one given, or else the fitted one nearest to two thirds of the depth.

    Raises `InputError` for a layer without probes.
    """
    if layer is not None:
        return probes.layers[probes.layer_index(layer)]
    return nearest_to_depth(probes.layers, probes.n_layers)


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
    progress: bool = False,
) -> Floats:
    """Read probes out at the same places of several prompts: (prompts, places, layers, concepts).

    `kind` is a unit of `emoprobe.trace`; cosines and z-scores are taken token by token, then averaged over a place. Raises
    `InputError` for a tokenizer that does not say where its tokens lie, and a place where no token is.
    """
    probes.check_model(model)
    chosen = list(probes.concepts if concepts is None else concepts)
    read = np.empty((len(prompts), len(places), len(layers), len(chosen)))
    texts = [prompt.text for prompt in prompts]
    for part in stream_residuals(model, texts, layers, batch_size=batch_size, progress=progress):
        lie = model.token_spans(part.batch)
        asked = [(row, prompts[index], place) for row, index in enumerate(part.indices) for place in places]
        held = [_tokens_at(lie[row], prompt, place) for row, prompt, place in asked]
        counts = np.array([len(positions) for positions in held])
        rows = torch.tensor([row for row, _, _ in asked]).repeat_interleave(torch.tensor(counts))
        at = torch.tensor(np.concatenate(held))
        tokens = [stream[rows, at] for stream in part.by_layer]  # each (tokens at places, d_model)
        values = torch.stack(
            [
                read_stream(probes, stream, layer, kind, chosen)
                for stream, layer in zip(tokens, layers, strict=True)
            ]
        )
        sums = np.add.reduceat(values.double().cpu().numpy(), np.r_[0, counts.cumsum()[:-1]], axis=1)
        means = (sums / counts[:, None]).reshape(len(layers), len(part.indices), len(places), len(chosen))
        read[list(part.indices)] = means.transpose(1, 2, 0, 3)
    return read


def read_beside_random(
    model: LiveModel,
    probes: ProbeSet,
    prompts: Sequence[Prompt],
    places: Sequence[str],
    layers: Sequence[int],
    *,
    kind: str = "centred_cosine",
    concepts: Sequence[str] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> Floats:
    """Read probes and random directions out in one pass: (1 + controls, prompts, places, layers, concepts), the probes first.

    Each control turns all directions by one random rotation, see `emoprobe.controls`: norms and angles, between concepts and
    between layers, stay what they are. With kind "z" controls are divided by the probes' own spread. Raises `InputError` as
    `read_at` does, and for fewer than two controls, which say nothing of a third.
    """
    if controls < 2:
        raise InputError(f"controls={controls}: give at least 2, so that their range is known")
    chosen = tuple(probes.concepts if concepts is None else concepts)
    both = _with_random(probes, chosen, layers, controls, seed)
    read = read_at(model, both, prompts, places, layers, kind=kind, batch_size=batch_size, progress=progress)
    apart = read.reshape(*read.shape[:-1], 1 + controls, len(chosen))
    return np.moveaxis(apart, -2, 0)


def _with_random(
    probes: ProbeSet, concepts: Sequence[str], layers: Sequence[int], controls: int, seed: int
) -> ProbeSet:
    """Return probes for some concepts at some layers, followed by copies of them whose directions are turned at random."""
    rows = [probes.layer_index(layer) for layer in layers]
    columns = [probes.concept_index(name) for name in concepts]
    directions = probes.directions[rows][:, columns]
    turned = [turned_at_random(directions, 1000 * seed + control) for control in range(controls)]

    def repeated(values: Tensor) -> Tensor:
        return values[rows][:, columns].repeat(1, 1 + controls)

    names = [*concepts, *(f"{name}, turned {control}" for control in range(controls) for name in concepts)]
    return replace(
        probes,
        layers=tuple(probes.layers[row] for row in rows),
        concepts=tuple(names),
        kinds={name: probes.kinds[concepts[place % len(concepts)]] for place, name in enumerate(names)},
        ranges={},
        directions=torch.cat([directions, *turned], dim=1),
        scale=repeated(probes.scale),
        offset=repeated(probes.offset),
        reference_mean=probes.reference_mean[rows],
        reference_std=repeated(probes.reference_std),
        residual_norms=probes.residual_norms[rows],
    )


def _tokens_at(tokens: Sequence[Span], prompt: Prompt, name: str) -> list[int]:
    """Return the positions of the tokens that overlap a place of a prompt."""
    if name not in prompt.places:
        raise InputError(f"{prompt.text!r} has no place {name!r}: it has {', '.join(prompt.places)}")
    spans = _spans(prompt.places[name])
    held = overlapping(tokens, spans)
    unread = prompt.text[max(b for _, b in tokens) : spans[-1][1]]
    if not held or unread.strip():
        raise InputError(
            f"the tokens of {prompt.text!r} do not reach its place {name!r}: it may be too long for the model"
        )
    return held


def _spans(place: Place) -> list[Span]:
    """Return a place as a list of spans."""
    return [(int(start), int(end)) for start, end in np.reshape(np.asarray(place), (-1, 2))]
