"""What a result says part by part, beside what it says as a whole."""

from emoprobe.study.result import Result


def shown(result: Result) -> list[bool]:
    """Return which parts are shown, in their order; the result is shown where all are, and only there."""
    held = list(result.parts.values())
    assert held and all(type(one) is bool for one in held)
    assert (result.sign == 1) == all(held) and (result.outcome == "Partly shown") == (
        result.sign == 0 and any(held)
    )
    return held
