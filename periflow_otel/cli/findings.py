"""What the doctor tells of."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    text: str
    is_fault: bool = False
