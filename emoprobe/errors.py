"""What a user can get wrong, as one exception: the command line turns it into one line and exit status 2."""


class InputError(ValueError):
    """Raise when something the user gave cannot be used.

    The message is one line: what was wrong, where, and what to do about it.
    """
