"""What two tenants record is counted exactly while the parts between them and the stores fail in turn."""

from pathlib import Path

from exact import TENANTS, Exact, expected_uploads
from programs import wait_until

RANKS, STEPS = 4, 400


def test_every_step_and_upload_arrives_once_whatever_fails(tmp_path: Path):
    """Steps once in the store and in its counts, by tenant, and each upload under its one id."""
    with Exact.started(tmp_path) as exact:
        trainings = exact.train(RANKS, STEPS, pause_s=0.05)
        wait_until(lambda: exact.steps(TENANTS[0]), 60, "the first steps have arrived")
        for disturb in exact.disturbances:
            disturb(1.0)
        assert [training.wait(120) for training in trainings] == [0, 0]
        steps = {(step, rank): 1 for step in range(1, STEPS + 1) for rank in range(RANKS)}
        for tenant in TENANTS:
            wait_until(lambda tenant=tenant: len(exact.steps(tenant)) >= len(steps), 120, "all steps have arrived")
            wait_until(lambda tenant=tenant: exact.completed(tenant) == len(steps), 60, "all steps are counted")
            assert exact.steps(tenant) == steps
        expected = expected_uploads(RANKS, STEPS)
        wait_until(lambda: exact.uploads().keys() >= expected, 90, "all uploads have arrived")
        assert exact.uploads().keys() == expected
