"""One thing that stands out in a run."""

from collections.abc import Mapping
from typing import Any

import msgspec

View = Mapping[str, Any]
"""What ``RunView.to_dict`` returns, or a part of it."""


class Finding(msgspec.Struct):
    """One thing that stands out."""

    kind: str
    text: str
    """A sentence."""
    ranks: list[int] = []
    step: int | None = None
    is_fault: bool = False
    """Something went wrong; else it is merely worth a look."""
