"""How a model is asked: one turn of a conversation, up to where its reply begins or with the first words of that reply.

Chat models are asked in their own template, others in the form "Human: …", "Assistant:". Where a text is put into a question,
the characters that it takes up are known, so that it can be steered or read there.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from emoprobe.errors import InputError
from emoprobe.interventions import Span
from emoprobe.models import LiveModel


@dataclass(frozen=True)
class Asked:
    """What a model reads: `text`, the `places` of what was put into the question, and what `joins` a reply to the text."""

    text: str
    places: dict[str, Span]
    joins: str


def asked(model: LiveModel, question: str, filled: dict[str, str] | None = None, opening: str = "") -> Asked:
    """Return a question as the model reads it, with `{name}` replaced by what is `filled` in, and a reply that begins so.

    Raises `InputError` for a name that nothing is given for, and for what a chat template refuses.
    """
    content, places = _fill(question, filled) if filled is not None else (question, {})
    if getattr(model.tokenizer, "chat_template", None):
        chat = model.chat_text([{"role": "user", "content": content}])
        text, start, joins = chat.text, chat.spans[0][0], ""
    else:
        text, start, joins = f"Human: {content}\n\nAssistant:", len("Human: "), " "
    moved = {name: (start + a, start + b) for name, (a, b) in places.items()}
    return Asked(text + joins + opening, moved, " ") if opening else Asked(text, moved, joins)


def _fill(template: str, filled: dict[str, str]) -> tuple[str, dict[str, Span]]:
    text, places = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is None:
            continue
        if name not in filled:
            raise InputError(f"nothing is given for {{{name}}} in {template!r}")
        places[name] = (len(text), len(text) + len(filled[name]))
        text += filled[name]
    return text, places
