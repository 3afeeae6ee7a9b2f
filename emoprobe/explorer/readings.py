"""What the explorer's page asks of a model, as plain data that JSON can hold.

Each function takes a `Subject` and what a person has chosen, and returns numbers together with the colours that they are shown
in, which are those of traces and maps everywhere else. This file knows nothing of the web.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Intervention, Span
from emoprobe.models import LiveModel
from emoprobe.probes import HeatMap, ProbeSet, difference_map, trace
from emoprobe.probes.heat_maps import Panel
from emoprobe.probes.readout import Trace, pieces, shade, visible
from emoprobe.probes.summary import METRICS, best_rows, two, verdict
from emoprobe.steering import add
from emoprobe.study.claims.word_classes import word_places
from emoprobe.study.word_magnitudes import Floats, gains, reading, word_tokens
from emoprobe.valattn import Valuation, biases, inject

TOKENS = 512
"""Tokens of a text that are read at most, fewer where the model's context is shorter."""
LENGTH = 32
"""Characters that a token is taken to have on average at most; what is beyond is not even cut into tokens: that may be slow."""
WORDS = 48
"""Words that are shown with their attention."""
DIMENSIONS = ("valence", "arousal", "relevance")
"""What is valued, where the probes have it."""
SHORT = {
    "z": "z-score",
    "read_out": "read-out",
    "dot": "u·x",
    "cosine": "cosine",
    "centred_cosine": "centred cosine",
}
"""Units of `trace` as a menu has them."""

Answer = dict[str, Any]
Tell = Callable[[Answer], None]
"""Takes an answer as far as there is one yet; what it raises ends the work on the rest."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Hold what is explored: a model, probes of it, and a valuation, without which attention is only read."""

    model: LiveModel
    probes: ProbeSet
    valuation: Valuation | None
    written: dict[tuple[str, int], str] = field(default_factory=dict)
    """How the model itself went on from the last prompt, by prompt and new tokens: it is the same wherever a slider stands."""

    @classmethod
    def of(cls, model: LiveModel, probes: ProbeSet, valuation: Valuation | None = None) -> Subject:
        """Make a subject; its valuation is by default the probes', of valence, arousal and relevance or else of all dimensions.

        Raises `InputError` for probes of another model's shape, and a tokenizer that does not say where its tokens lie.
        """
        probes.check_model(model)
        if not model.tokenizer.is_fast:
            raise InputError(f"{model.name}: its tokenizer does not say where tokens lie; load a fast one")
        if valuation is None and any(layer < model.n_layers for layer in probes.layers):
            valuation = Valuation.from_probes(probes, _valued(probes))
        return cls(model, probes, valuation)

    @property
    def limit(self) -> int:
        """How many tokens of a text are read."""
        return min(TOKENS, self.model.context_length or TOKENS)


def _valued(probes: ProbeSet) -> list[str]:
    usual = [name for name in DIMENSIONS if name in probes]
    return usual or [name for name, kind in probes.kinds.items() if kind == "dimension"] or list(probes)


def about(subject: Subject) -> Answer:
    """Return what there is to choose from."""
    model, probes, valuation = subject.model, subject.probes, subject.valuation
    worth = {row["concept"]: _worth(row) for row in best_rows(probes).to_dict("records")}
    return {
        "model": model.name,
        "blocks": model.n_layers,
        "width": model.d_model,
        "heads": model.n_heads,
        "limit": subject.limit,
        "corpus": str(probes.metadata.get("corpus", "unknown texts")),
        "concepts": [
            {
                "name": name,
                "best": probes.best_layer(name),
                "worth": worth.get(name, "Its probe has not been scored."),
            }
            for name in probes
        ],
        "layers": list(probes.layers),
        "kinds": SHORT,
        "valued": [] if valuation is None else list(valuation.dimensions),
        "writes": not getattr(model, "is_encoder", False),
    }


def _worth(row: dict[Hashable, Any]) -> str:
    """Say how far a concept's probe is to be believed, by its score at its best layer and what its controls say."""
    value, low, high = (two(row[name]) for name in ("value", "low", "high"))
    score = f"{METRICS[row['metric']]} {value} [{low}, {high}] at layer {row['layer']}"
    return f"On held-out texts its probe has {score}. {verdict(row)}."


# Reading -------------------------------------------------------------------------------------------------------------


def read(subject: Subject, text: str, concept: str, kind: str) -> Answer:
    """Read a concept at every layer and token: the text in pieces, and a map of layers × tokens.

    `token_styles` are the colours of `trace`, whose scale is each layer's own; those of the map are the same for all layers
    where values can be compared between them. A character that consists of several tokens has the last one's colour, which has
    seen all of it.
    """
    begun = beginning(subject.model, text, subject.limit)
    found = trace(subject.model, subject.probes, begun, concepts=[concept], layers="all", kind=kind)
    tokens = found.frame.drop_duplicates("position").sort_values("position")
    (panel,) = HeatMap(found).panels()
    return {
        "pieces": _pieces(text, list(zip(tokens.start, tokens.end, strict=True))),
        "token_styles": _token_styles(found, panel.layers),
        "map": _map(panel),
        "unit": found.unit,
        "centre": found.centre_in_words,
        "notice": _cut_notice(subject, text, begun),
    }


def compare(subject: Subject, text: str, other: str, concept: str, kind: str) -> Answer:
    """Subtract what a concept reads in another text from what it reads in this one, at every layer and aligned token."""
    begun = [beginning(subject.model, one, subject.limit) for one in (text, other)]
    found = difference_map(subject.model, subject.probes, begun[0], begun[1], concept, kind=kind)
    (panel,) = found.panels()
    notices = [_cut_notice(subject, *pair) for pair in zip((text, other), begun, strict=True)]
    return {
        "map": _map(panel),
        "unit": found.unit,
        "randoms": found.randoms,
        "report": found.report(),
        "notice": next(filter(None, notices), None),
    }


def _pieces(text: str, spans: Sequence[Span]) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for characters, token in pieces(text, spans):
        own = token is not None and spans[token][0] < spans[token][1]
        if own and not characters:
            shown[-1]["token"] = token
        elif characters or token is not None:
            shown.append({"text": characters, "token": token})
    return shown


def _token_styles(found: Trace, layers: Sequence[int]) -> list[list[str]]:
    coloured = found.coloured().pivot(index="layer", columns="position", values="colour")
    return [[shade(colour) for colour in row] for row in coloured.loc[list(layers)].to_numpy().tolist()]


def _map(panel: Panel) -> Answer:
    colours = np.clip(panel.away / (panel.reach or 1.0), -1, 1)
    return {
        "rows": panel.layers,
        "columns": [visible(name) for name in panel.columns],
        **_cells(panel.values, colours),
        "marked": None if panel.marked is None else panel.marked.tolist(),
    }


def _cells(values: Floats, colours: Floats) -> Answer:
    """Return cells (rows, columns) and their colours; what is missing is None, as JSON has no NaN."""
    return {
        "values": [[None if np.isnan(value) else value for value in row] for row in values.tolist()],
        "styles": [["" if np.isnan(c) else shade(float(c)) for c in row] for row in colours],
    }


# Intervening ---------------------------------------------------------------------------------------------------------


def attend(subject: Subject, text: str, layer: int, head: int | None, strength: float) -> Answer:
    """Return a block's attention from word to word and its word magnitudes, standard and under the valuation at λ.

    Attention is one head's, or the mean over heads; magnitudes are all heads' (see `emoprobe.study.word_magnitudes`). Words
    are shown up to `WORDS`. The last layer leaves the last block, whose attention is shown for it.
    """
    model = subject.model
    _check_head(model, head)
    block = min(layer, model.n_layers - 1)
    begun = beginning(model, text, subject.limit)
    batch = model.tokenize(begun)
    places = word_places(begun)
    belongs = word_tokens(places, model.token_spans(batch)[0]) if places else np.zeros((0, 1))
    kept = np.flatnonzero(belongs.any(-1))
    if len(kept) < 2:
        return {"words": [], "block": block, "notice": "Attention between words needs two words at least."}
    readings = []
    for lam in (0.0, strength):
        placed = nullcontext() if subject.valuation is None else inject(model, subject.valuation, lam)
        with torch.no_grad(), placed:
            outputs, weights = (part[:, 0].double().cpu().numpy() for part in model.attention(batch, [block]))
        weights = weights if head is None else weights[:, head : head + 1]
        readings.append(reading(outputs, weights, belongs[kept]))
    shown = kept[:WORDS]
    standard, valued = (one.attention[: len(shown), : len(shown)] for one in readings)
    change = valued - standard
    most = max(standard.max(), valued.max())
    before, after = (one.magnitudes for one in readings)
    return {
        "words": [begun[slice(*places[place])] for place in shown],
        "block": block,
        "standard": _cells(standard, standard / most),
        "valued": _cells(valued, valued / most),
        "change": _cells(change, change / (np.abs(change).max() or 1.0)),
        "magnitudes": np.stack([before[0], after[0]], axis=-1)[: len(shown)].tolist(),
        "gains": gains(before, after)[0, : len(shown)].tolist(),
        "notice": None
        if len(shown) == len(kept) and begun == text
        else f"{len(shown)} of {len(word_places(text))} words are shown.",
    }


def _check_head(model: LiveModel, head: int | None) -> None:
    if head is not None and not 0 <= head < model.n_heads:
        raise InputError(f"head {head} does not exist: give 0 to {model.n_heads - 1}")


def go_on(
    subject: Subject,
    tell: Tell,
    text: str,
    concept: str,
    layer: int,
    strength: float,
    steering: float,
    new_tokens: int,
) -> Answer:
    """Continue a text greedily, untouched and under the valuation at λ = `strength` with a concept steered by `steering`.

    What is written so far is told at every token.
    """
    model = subject.model
    room = subject.limit - new_tokens
    if room < 1:
        raise InputError(
            f"{new_tokens} new tokens do not fit into the {subject.limit} that are read: ask for fewer"
        )
    prompt = ending(model, text, room)

    notice = None if prompt == text else f"Only the last {len(prompt):,} characters are gone on from."
    valued = subject.valuation if strength else None
    interventions: list[Intervention] = [
        *([] if valued is None else biases(model, valued, strength)),
        *add(model, subject.probes[concept], steering, layer),
    ]

    def answer(untouched: str, changed: str, writing: bool = True) -> Answer:
        return {
            "prompt": prompt,
            "untouched": untouched,
            "changed": changed,
            "notice": notice,
            "writing": writing,
        }

    def write(so_far: Callable[[str], Answer]) -> str:
        watching = {"streamer": _Telling(model, lambda text: tell(so_far(text)))} if model.watched else {}
        options = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1}
        return str(model.generate(prompt, **options, **watching))

    if (prompt, new_tokens) not in subject.written:
        subject.written.clear()
        written = write(lambda text: answer(text, "" if interventions else text))
        subject.written[prompt, new_tokens] = written
    changed = untouched = subject.written[prompt, new_tokens]
    if interventions:
        with model.intervene(*interventions):
            changed = write(lambda text: answer(untouched, text))
    return answer(untouched, changed, writing=False)


class _Telling:
    """Tell what a model has written so far, at every token: a streamer, as transformers' generation takes it."""

    def __init__(self, model: LiveModel, tell: Callable[[str], None]) -> None:
        self._decode, self._tell = model.tokenizer.decode, tell
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt (1, tokens), which comes first, and then each new token (1,)."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        # A character may consist of several tokens, of which the last is not there yet.
        self._tell(self._decode(self._ids, skip_special_tokens=True).rstrip("\ufffd"))

    def end(self) -> None:
        """Tell nothing more: the answer itself says how it ends."""


# Cutting -------------------------------------------------------------------------------------------------------------


def beginning(model: LiveModel, text: str, limit: int) -> str:
    """Return as much of a text's beginning as has no more than `limit` tokens."""
    text = text[: LENGTH * limit]
    while len(spans := _spans(model, text)) > limit:
        text = text[: min(max(end for _, end in spans[:limit]), len(text) - 1)]
    return text


def ending(model: LiveModel, text: str, limit: int) -> str:
    """Return as much of a text's end as has no more than `limit` tokens."""
    text = text[-LENGTH * limit :]
    while len(spans := _spans(model, text)) > limit:
        text = text[max(spans[-limit][0], 1) :]
    return text


def _spans(model: LiveModel, text: str) -> list[Span]:
    if not text.strip():
        raise InputError("there is nothing to read: type some words")
    spans: list[Span] = model.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return spans


def _cut_notice(subject: Subject, text: str, begun: str) -> str | None:
    if begun == text:
        return None
    return (
        f"The text is longer than what is read at once, {subject.limit} tokens: its first {len(begun):,} of {len(text):,} "
        "characters are read, and the rest is shown in grey."
    )
