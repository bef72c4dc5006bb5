"""The error a user can mend, and the cause behind any other. Standard library only."""


class UserError(ValueError):
    """Something the user gave cannot work. The message is one sentence: value, rule, remedy.

    Scripts print it alone on stderr and exit with status 2.
    """


def first_cause(error: BaseException) -> str:
    """What began it, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[0]
