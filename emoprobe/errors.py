"""What a user can get wrong, as one exception: the command line turns it into one line and exit status 2.

And what a user should know of the data before believing a result, as a warning.
"""

import re

UNSHOWN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""What would break a line, command a terminal or turn the direction of writing, where it is shown."""


class InputError(ValueError):
    """Raise when something the user gave cannot be used.

    The message is one line: what was wrong, where, and what to do about it. It repeats what was given; what cannot be shown on
    a line is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], message))


class ConfoundWarning(UserWarning):
    """Warn of annotations that go with something else, so that no probe of these texts can be told from one of that."""
