"""How much of a processor may go into questions that nobody has asked for. Pure."""

from typing import Final

SHARE: Final = 0.0025
"""Of the time of a processor, for questions of one kind."""
BURST_S: Final = 0.1
"""What may be spent at once after a long time without questions."""
_DEARER: Final = 1.5
_DEAREST: Final = 32.0


class Allowance:
    """What is asked in vain is dearer the next time, up to a point; what is worth it costs what it takes."""

    def __init__(self) -> None:
        """Begin with a full one."""
        self._left_s = BURST_S
        self._seen_s: float | None = None
        self._price = 1.0

    def allows(self, now_s: float) -> bool:
        """Tell whether there is some left.

        Args:
            now_s: On a clock of the caller's.
        """
        if self._seen_s is not None:
            self._left_s = min(BURST_S, self._left_s + SHARE * (now_s - self._seen_s))
        self._seen_s = now_s
        return self._left_s > 0

    def pay(self, cost_s: float, *, was_worth_it: bool | None = None) -> None:
        """Take note of what questions have cost.

        Args:
            cost_s: Processor time.
            was_worth_it: They have led to an answer; None: they are of those that need not.
        """
        if was_worth_it is not None:
            self._price = 1.0 if was_worth_it else min(_DEAREST, _DEARER * self._price)
        self._left_s -= cost_s * (1.0 if was_worth_it is None else self._price)
