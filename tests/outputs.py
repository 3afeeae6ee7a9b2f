"""What is shown as printed, beside what is printed."""

import re

DECIMAL = re.compile(r"([-−+]?\d+\.\d+)")


def alike(shown: str, printed: str) -> bool:
    """Return whether texts are the same but for spaces and for one in the last digit of decimal numbers."""
    left, right = (DECIMAL.split(" ".join(text.split())) for text in (shown, printed))
    return (
        len(left) == len(right)
        and left[::2] == right[::2]
        and all(
            abs(float(a.replace("−", "-")) - float(b.replace("−", "-")))
            < 1.01 * 10.0 ** -len(a.partition(".")[2])
            for a, b in zip(left[1::2], right[1::2], strict=True)
        )
    )
