"""Conversations as text: the tokenizer's own chat template, with the span of every message.

The text is what the model is to read, ready for any method that takes texts; spans are characters of it, ready to be given
as `positions=`. With a generation prompt the position before the reply is the last one of the prompt: `positions="last"`
and `pool="last"`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from emoprobe.errors import InputError
from emoprobe.interventions import OPEN, Span

Message = Mapping[str, str]


@dataclass(frozen=True)
class Chat:
    """A conversation as the model reads it: `text`, and the `roles` and `spans` of the contents of its messages, in order."""

    text: str
    roles: tuple[str, ...]
    spans: tuple[Span, ...]

    def of(self, role: str) -> list[Span]:
        """Return the spans of all messages of a role. Raises `InputError` if there is none."""
        found = [span for span, own in zip(self.spans, self.roles, strict=True) if own == role]
        if not found:
            raise InputError(
                f'no message has the role "{role}": this conversation has {sorted(set(self.roles))}'
            )
        return found

    def turns_of_assistant(self) -> list[Span]:
        """Return the spans of what the assistant says: its messages, and the reply that is to come.

        The reply's span begins with the last token of the text, from which its first token is predicted, and goes on in what
        is generated; there is none where the last message is the assistant's own. As `positions=`, this is where a
        present-speaker direction belongs.
        """
        said = [span for span, role in zip(self.spans, self.roles, strict=True) if role == "assistant"]
        replied = self.roles[-1] == "assistant"
        return said if replied else [*said, (len(self.text) - 1, OPEN)]


def render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = True) -> Chat:
    """Return a conversation as text with spans.

    `messages` are dicts with "role" and "content", as in transformers. A start token that the tokenizer puts before every text
    anyhow is taken off, so that there is one. Raises `InputError` for a tokenizer without a chat template, for messages that
    its template refuses, and for a template that does not hold the contents as they are.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("this tokenizer has no chat template: give the conversation as text")
    _check_messages(messages)
    marks = [
        f"\ue000{row}\ue001" for row in range(len(messages))
    ]  # where contents go: characters of nobody's
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    try:
        text, outline = (
            tokenizer.apply_chat_template(
                list(conversation), tokenize=False, add_generation_prompt=add_generation_prompt
            )
            for conversation in (messages, marked)
        )
    except (TemplateError, ValueError) as error:
        raise InputError(f"the chat template refuses this conversation: {error}") from error
    spans = _spans(text, outline, marks, [message["content"] for message in messages])
    start = _doubled_start(tokenizer, text)
    roles = tuple(message["role"] for message in messages)
    return Chat(text[start:], roles, tuple((a - start, b - start) for a, b in spans))


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise InputError("no message was given")
    for row, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise InputError(f'message {row} is not a dict with "role" and "content", both strings')


def _spans(text: str, outline: str, marks: list[str], contents: list[str]) -> list[Span]:
    """Return where the contents lie in the text, which is the outline with each mark replaced by its content."""
    spans: list[Span] = []
    read = written = 0
    for row, (mark, content) in enumerate(zip(marks, contents, strict=True)):
        found = outline.find(mark, read)
        start = written + found - read
        # Templates strip contents, or do not; a stripped one must not be taken for the beginning of one that is not.
        held = [c for c in (content, content.strip()) if text.startswith(c, start)]
        if found < 0 or outline[read:found] != text[written:start] or not held:
            raise InputError(
                f"the chat template rewrites message {row}, so that its span is not known: give it as text"
            )
        spans.append((start, start + len(held[0])))
        read, written = found + len(mark), spans[-1][1]
    if outline[read:] != text[written:]:
        raise InputError(
            f"the chat template rewrites message {len(marks) - 1}, so that its span is not known"
        )
    return spans


def _doubled_start(tokenizer: Any, text: str) -> int:
    """Return the length of a start token at the beginning of the text that the tokenizer would put there again."""
    start = tokenizer.bos_token
    if start is None or not text.startswith(start):
        return 0
    doubled = list(tokenizer(text)["input_ids"][:2]) == [tokenizer.bos_token_id] * 2
    return len(start) if doubled else 0
