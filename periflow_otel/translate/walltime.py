"""Where the wall time of a rank went, by kind, without a hole: the kinds add up to the whole."""

import msgspec

from periflow_otel.records import Phase, StepEnded

STEP, GAP, CHECKPOINT, STARTUP = "step", "gap", "checkpoint", "startup"


class WallTime(msgspec.Struct, array_like=True):
    """A line that is followed from left to right; each record says what the stretch up to it was."""

    accounted_unix_ns: int = 0
    """Everything up to here is counted."""
    seconds: dict[str, float] = {}
    """Seconds by kind: step, gap, checkpoint, startup, or the name of a phase, less what lies within it."""
    has_stepped: bool = False
    noted_unix_ns: int = 0
    in_step_ns: int = 0
    """Time that phases took in the step that is open."""
    outer: dict[int, list[tuple[int, int]]] = {}
    """Stretches that belong to a phase that has not ended, or to what was before it; by its number."""
    in_step_by_parent: dict[int, int] = {}
    """Time that inner phases of the open step took, by the number of the phase around them."""

    def end_step(self, record: StepEnded) -> None:
        """Count a step, less the phases in it, and what was between it and the record before as a gap."""
        self._advance(record.start_unix_ns, GAP if self.has_stepped else STARTUP)
        self.has_stepped = True
        end_unix_ns = record.start_unix_ns + record.duration_ns
        self._add(STEP, max(0, record.duration_ns - self.in_step_ns))
        self.accounted_unix_ns = max(self.accounted_unix_ns, end_unix_ns)
        self.in_step_ns = 0
        self.in_step_by_parent.clear()

    def note(self, unix_ns: int) -> None:
        """Remember a record outside steps: a checkpoint after it did not take the time before it."""
        self.noted_unix_ns = unix_ns

    def end_checkpoint(self, unix_ns: int) -> None:
        """Count the time since the record before as saving."""
        self._advance(min(self.noted_unix_ns, unix_ns), GAP if self.has_stepped else STARTUP)
        self._advance(unix_ns, CHECKPOINT)

    def end_phase(self, record: Phase) -> None:
        """Count a phase, less the phases in it."""
        if record.step is not None:
            self._end_phase_in_step(record)
        else:
            self._end_phase_outside(record)

    def close(self, unix_ns: int) -> None:
        """Count what is left when the run is over."""
        for start, end in [stretch for stretches in self.outer.values() for stretch in stretches]:
            self._add(GAP, end - start)
        self.outer.clear()
        self._advance(unix_ns, GAP if self.has_stepped else STARTUP)

    def _end_phase_in_step(self, record: Phase) -> None:
        inner_ns = self.in_step_by_parent.pop(record.number, 0)
        self._add(record.name, max(0, record.duration_ns - inner_ns))
        if record.parent:
            self.in_step_by_parent[record.parent] = self.in_step_by_parent.get(record.parent, 0) + record.duration_ns
        else:
            self.in_step_ns += record.duration_ns

    def _end_phase_outside(self, record: Phase) -> None:
        before = GAP if self.has_stepped else STARTUP
        for start, end in self.outer.pop(record.number, []):
            middle = min(max(start, record.start_unix_ns), end)
            self._leave_before(record, start, middle, before)
            self._add(record.name, end - middle)
        self._leave_before(record, self.accounted_unix_ns, record.start_unix_ns, before)
        self.accounted_unix_ns = max(self.accounted_unix_ns, record.start_unix_ns)
        self._advance(record.start_unix_ns + record.duration_ns, record.name)

    def _leave_before(self, record: Phase, start: int, end: int, kind: str) -> None:
        """Count a stretch before a phase: it may be the phase's around it, which has not ended."""
        if end <= start:
            return
        if record.parent:
            self.outer.setdefault(record.parent, []).append((start, end))
        else:
            self._add(kind, end - start)

    def _advance(self, unix_ns: int, kind: str) -> None:
        self._add(kind, max(0, unix_ns - self.accounted_unix_ns))
        self.accounted_unix_ns = max(self.accounted_unix_ns, unix_ns)

    def _add(self, kind: str, duration_ns: int) -> None:
        if duration_ns > 0:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + duration_ns / 1e9
