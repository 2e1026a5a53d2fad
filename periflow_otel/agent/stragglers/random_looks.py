"""Looks at the ranks of a node at random moments: who is at work while the others wait holds up every step."""

import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from periflow_otel.agent.stragglers.sampling import Sampling
from periflow_otel.agent.watch import RankJournal
from periflow_otel.translate.stragglers.slow import LASTING_SHARE, Culprit, Look, find_culprit

KNOWN: Final = 60
"""So many looks count, the latest."""
AT_ONCE: Final = 15
"""After as many more there may be something to say."""
FIRST_LOOKS: Final = 30
"""So many are"""
FIRST_INTERVAL_S: Final = 1.0
"""apart on average, and later ones"""
INTERVAL_S: Final = 5.0
"""this."""
_PATIENCE: Final = 3
"""After so many times that answers were looked for they are not waited for."""


class RandomLooks:
    """Of a run on this node. It waits for nobody."""

    def __init__(self, journals: Sequence[RankJournal], now_s: float) -> None:
        """Begin without looks."""
        self._journals = journals
        self._looks: deque[tuple[int, Look]] = deque(maxlen=KNOWN)
        """With their times, Unix ns."""
        self._due_s = now_s
        self._sampling: Sampling | None = None
        self._tries = 0
        self._untold = 0
        self.cost_s = 0.0
        """Of the last look."""

    @property
    def since_unix_ns(self) -> int:
        """When the first look was that counts."""
        return self._looks[0][0]

    def is_looking(self) -> bool:
        """Tell whether answers are waited for."""
        return self._sampling is not None

    def left_s(self, now_s: float) -> float:
        """Return after how many seconds the next look is due."""
        return self._due_s - now_s

    def look(self, now_s: float) -> float | None:
        """Ask, or take answers; return after how many seconds to do that again, None if this look is over."""
        if self._sampling is None:
            self._sampling, self._tries = Sampling(self._journals, 1), 0
        self._sampling.look()
        answers = {rank: sample for look in self._sampling.looks for rank, sample in look.items()}
        is_complete = len(answers) == len(self._journals)
        self._tries += 1
        if not is_complete and self._tries <= _PATIENCE and not self._sampling.is_excused:
            return self._sampling.pause_s
        if is_complete:
            self._looks.append((time.time_ns(), answers))
            self._untold += 1
        self.cost_s = self._sampling.cost_s
        self._sampling = None
        interval_s = FIRST_INTERVAL_S if len(self._looks) < FIRST_LOOKS else INTERVAL_S
        self._due_s = now_s + interval_s * random.uniform(0.5, 1.5)  # noqa: S311  # a step must not have the same rhythm
        return None

    def give_up(self) -> None:
        """Let a look be that has begun."""
        self._sampling = None

    def culprit(self) -> Culprit | None:
        """Return who holds up the others, each time that some more looks are known."""
        if self._untold < AT_ONCE:
            return None
        self._untold = 0
        return find_culprit([look for _, look in self._looks], LASTING_SHARE)
