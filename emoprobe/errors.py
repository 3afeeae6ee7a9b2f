"""What a user can get wrong, as one exception: the command line turns it into one line and exit status 2.

And what a user should know of the data before believing a result, as a warning.
"""


class InputError(ValueError):
    """Raise when something the user gave cannot be used.

    The message is one line: what was wrong, where, and what to do about it.
    """


class ConfoundWarning(UserWarning):
    """Warn of annotations that go with something else, so that no probe of these texts can be told from one of that."""
