"""The one exception a user is meant to see.

A leaf: it imports nothing, so every package may raise it. The command line prints the sentence and exits with 1.
"""

LONGEST = 2000  # characters; a bad file may put a megabyte where a number belongs


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do."""

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 500]} ... {message[-400:]}"
        super().__init__(message)


class ModelError(UserError):
    """A model's own code failed in every way it can be run; in another process or on another machine it may not."""
