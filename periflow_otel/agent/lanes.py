"""Tracks and their delivery, together: what is read of journals is delivered, and only then committed."""

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
        self._moved: set[Track] = set()
        self._turn = 0

    def advance(self, tracks: Sequence[Track]) -> bool:
        """Read some records, deliver and commit them; return whether there are more that can be delivered now.

        Where the exporter does not take them, they are what the next calls go on with.
        """
        is_spent = self.delivery.wants_more() and self._read(tracks)
        while self.delivery.is_due():  # also when told to stop: what was delivered in part would come twice
            self.delivery.attempt()
        for track in tracks:
            track.note_declined(is_declined=self.delivery.is_declined)
        if not self.delivery.is_done():
            return False
        self._commit()
        return is_spent

    def give_up(self, tracks: Sequence[Track]) -> None:
        """Drop and count everything that is left, to the end of the journals."""
        is_spent = True
        while is_spent:
            self.delivery.give_up()
            is_spent = self._read(tracks)
        self.delivery.give_up()
        self._commit()

    def _commit(self) -> None:
        for track in self._moved:
            track.commit()
        self._moved = set()

    def _read(self, tracks: Sequence[Track]) -> bool:
        waiting = [track for track in tracks if not track.cursor.is_complete]
        start = self._turn % len(waiting) if waiting else 0  # whose turn it was not last time comes first
        budget, batches = Budget(len(waiting)), []
        for track in waiting[start:] + waiting[:start]:
            if budget.is_spent():
                break
            self._turn += 1
            batches.append(Batch(track.run, track.account, track.read(budget, self._refresh_s)))
        self._moved |= {track for track in waiting if track.has_moved()}
        self.delivery.give(batches)
        return budget.is_spent()
