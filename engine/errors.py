"""The one exception a user is meant to see.

A leaf: it imports nothing of evalengine, so every package may raise it. The command line prints the sentence and exits
with 1.
"""

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters; a bad file may put a megabyte where a number belongs


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do."""

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 500]} ... {message[-400:]}"
        super().__init__(message)


class ModelError(UserError):
    """A model's own code failed in every way it can be run; in another process or on another machine it may not."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause for the end of an error about an unknown `name`: the closest known one, else all of them."""
    words = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name[:60].lower(), words, n=1, cutoff=0.5)
    return f": did you mean '{words[close[0]]}'?" if close else f": choose from {', '.join(words.values())}"
