"""What is looked at in texts before they are read."""

from collections.abc import Sequence

from emoprobe.errors import InputError


def check_strings(texts: Sequence[object], first: int = 0) -> None:
    """Raise `InputError` for what is no text or holds nothing, and say which it is, counted from `first`."""
    if not texts:
        raise InputError("no text was given")
    for row, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise InputError(f"text {row} is a {type(text).__name__}, not a string")
        if not text.strip():
            raise InputError(f"text {row} is empty: leave it out")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"text {row} holds a surrogate, which is half of a character: decode it anew, or leave it out"
                ) from None
