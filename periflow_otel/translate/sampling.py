"""Which step traces to keep: a share of all, and every one that somebody will look for."""

from bisect import bisect_left, insort
from typing import Final

import msgspec

from periflow_otel.ids import TraceId, is_sampled

_WINDOW: Final = 101
_ENOUGH: Final = 20
_SLOW: Final = 3.0


class SamplerState(msgspec.Struct, array_like=True):
    """What a sampler remembers of the steps before."""

    recent: list[float] = []
    """Their last durations in seconds, in no order but that of ``oldest``."""
    oldest: int = 0
    """Place in ``recent`` of the duration that is forgotten next."""


class StepSampler:
    """Decides step by step for one rank."""

    def __init__(self, state: SamplerState) -> None:
        """Go on from a state, which is kept up to date."""
        self._state = state
        self._ordered = sorted(state.recent)

    def keep(self, trace_id: TraceId, ratio: float, duration_s: float, *, is_marked: bool) -> bool:
        """Decide whether the trace of a finished step is kept. To be asked once for every step, in order.

        Args:
            trace_id: The trace of the step; all ranks decide alike on it.
            ratio: Share of traces to keep, 0 to 1; 1 keeps all, and one below 0 none.
            duration_s: Duration of the step in seconds.
            is_marked: The step has a checkpoint, an error or a non-finite metric, and is kept beside the share.
        """
        if ratio >= 1 or ratio < 0:
            return ratio >= 1
        is_slow = self._is_slow(duration_s)
        self._remember(duration_s)
        return is_marked or is_slow or is_sampled(trace_id, ratio)

    def _is_slow(self, duration_s: float) -> bool:
        """Compare with the median, once enough durations are known to have one."""
        ordered = self._ordered
        return len(ordered) >= _ENOUGH and duration_s > _SLOW * ordered[len(ordered) // 2]

    def _remember(self, duration_s: float) -> None:
        state = self._state
        insort(self._ordered, duration_s)
        if len(state.recent) < _WINDOW:
            state.recent.append(duration_s)
            return
        del self._ordered[bisect_left(self._ordered, state.recent[state.oldest])]
        state.recent[state.oldest] = duration_s
        state.oldest = (state.oldest + 1) % _WINDOW
