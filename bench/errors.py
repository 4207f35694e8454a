"""What ends a command in one line."""


class UsageError(ValueError):
    """What was wrong with the call, and what to do, in a line."""
