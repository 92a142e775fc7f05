"""The one exception a user is meant to see.

A leaf: it imports nothing, so every package may raise it. The command line prints the sentence and exits with 1.
"""


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do."""
