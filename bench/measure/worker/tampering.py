"""What a variant did to the process that measures it: named where it is seen, ended
where it is heard of.
"""

from __future__ import annotations


class Tampered(Exception):
    """The process is not as it was, so nothing that it says later is believed: it ends,
    and the rest starts afresh.

    Args:
        whose: the label of the entry that did it; None where several had a turn since
        the last look. reason: one line that says what has changed.
    """

    def __init__(self, whose: str | None, reason: str):
        super().__init__(reason)
        self.whose = whose
        self.reason = reason
