"""The error that a user can repair, and the root cause of any other. Standard library only."""


class UserError(ValueError):
    """Something the user gave cannot work. The message is one sentence: value, rule, remedy.

    Scripts print only this sentence, on stderr, and exit with status 2.
    """


def first_cause(error: BaseException) -> str:
    """The first line of the error at the root of the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[0]
