"""Tracks and their delivery, together: what is read of journals is delivered, and only then committed."""

from collections import deque
from collections.abc import Sequence

from periflow_otel.agent.delivery import Batch, Delivery
from periflow_otel.agent.tracks import Budget, Track


class Lane:
    """Tracks that are delivered together: all of a consumer, or one where ranks have destinations of their own."""

    def __init__(self, delivery: Delivery, refresh_s: float) -> None:
        """Begin without tracks.

        Args:
            delivery: Where what they read goes.
            refresh_s: How often the state of the instruments is delivered even if nothing is new.
        """
        self.delivery = delivery
        self._refresh_s = refresh_s
        self._waiting: list[Track] = []
        """Whose turn it is, and who is not read to the end of the journal."""
        self._moved: set[Track] = set()

    def advance(self, tracks: Sequence[Track], due: Sequence[Track]) -> bool:
        """Read some records, deliver and commit them; return whether there are more that can be delivered now.

        Where the exporter does not take them, they are what the next calls go on with.

        Args:
            tracks: All that there are.
            due: Of these, whose turn it is.
        """
        self._waiting = [each for each in dict.fromkeys((*self._waiting, *due)) if not each.cursor.is_complete]
        if self.delivery.wants_more():
            self._read()
        while self.delivery.is_due():  # also when told to stop: what was delivered in part would come twice
            self.delivery.attempt()
        for track in tracks:
            track.note_declined(is_declined=self.delivery.is_declined)
        if not self.delivery.is_done():
            return False
        self._commit()
        return bool(self._waiting)

    def give_up(self, tracks: Sequence[Track]) -> None:
        """Drop and count everything that is left, to the end of the journals."""
        self._waiting = [track for track in tracks if not track.cursor.is_complete]
        while self._waiting:
            self.delivery.give_up()
            self._read()
        self.delivery.give_up()
        self._commit()

    def _commit(self) -> None:
        for track in self._moved:
            track.commit()
        self._moved = set()

    def _read(self) -> None:
        """Read as much as is delivered together."""
        budget, batches = Budget(), []
        waiting = deque(self._waiting)
        while waiting and not budget.is_spent():
            track = waiting.popleft()
            batches.append(Batch(track.run, track.account, track.read(budget, self._refresh_s)))
            if track.has_moved():
                self._moved.add(track)
            if budget.is_spent() and track.is_behind():
                waiting.append(track)  # after all others
        self._waiting = list(waiting)
        self.delivery.give(batches)
