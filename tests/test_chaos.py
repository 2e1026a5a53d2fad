"""Whatever is killed or stopped, and whatever the receiver answers, nothing is lost."""

import random

from chaos import Chaos
from faulty_receiver import FaultyReceiver


def test_nothing_is_lost_whatever_happens():
    """Every call that had returned arrives, once the receiver takes it; and every id stands for one thing."""
    with FaultyReceiver() as receiver:
        found = Chaos(receiver, random.Random()).run(3, 8)  # noqa: S311  # no secret
    assert found.recorded > 0
    assert (found.missing, found.ambiguous) == (0, 0), found
