"""Who emits: what tells instances apart, and what the user has said."""

import msgspec
import pytest
from recorder import make_run

from periflow_otel.names import VERSION
from periflow_otel.records import RankRun
from periflow_otel.translate.resource import resource_of


def attributes(**fields: object) -> dict[str, object]:
    """Return the attributes of a rank's resource."""
    return dict(resource_of(make_run(**fields)).attributes)


def instance_id(run: RankRun) -> object:
    """Return what an instance is called."""
    return dict(resource_of(run).attributes)["service.instance.id"]


def test_a_resource_says_which_run_and_rank():
    """Run, attempt, node and mode, and what made it, besides what the process has found out about itself."""
    resource = (("host.name", "node-3"), ("service.name", "bert"))
    found = attributes(run_id="abc", attempt=2, rank=7, node_rank=3, world_size=32, mode="local", resource=resource)
    assert found == {
        "host.name": "node-3",
        "service.name": "bert",
        "service.namespace": "periflow",
        "service.instance.id": "abc/2/7",
        "telemetry.sdk.name": "periflow_otel",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": VERSION,
        "telemetry.distro.name": "periflow_otel",
        "telemetry.distro.version": VERSION,
        "periflow.run.id": "abc",
        "periflow.run.attempt": 2,
        "periflow.node_rank": 3,
        "periflow.world_size": 32,
        "periflow.mode": "local",
    }


@pytest.mark.parametrize("given", [(), (("service.instance.id", "pod-7"),)], ids=["ours", "the user's"])
def test_no_two_instances_have_one_id(given: tuple[tuple[str, str], ...]):
    """Ranks differ, and what the agent says is an instance of its own; so do attempts, by our own ids."""
    runs = [make_run(rank=rank, world_size=2, resource=given) for rank in (0, 1)]
    runs += [runs[0].of_agent(), msgspec.structs.replace(runs[0], node_rank=1).of_agent()]
    if not given:
        runs += [msgspec.structs.replace(run, attempt=2) for run in runs[:2]]
    assert len({instance_id(run) for run in runs}) == len(runs)


def test_an_agent_is_the_same_in_all_attempts():
    """It outlives them: nothing in its resource is of one of them, or of one rank."""
    first, second = (make_run(attempt=attempt, rank=attempt, world_size=attempt) for attempt in (1, 2))
    assert resource_of(first.of_agent()) == resource_of(second.of_agent())


@pytest.mark.parametrize("key", ["service.namespace", "service.instance.id"])
def test_the_user_decides_on_the_service(key: str):
    """What OTEL_RESOURCE_ATTRIBUTES says of the service wins over our default."""
    assert attributes(world_size=1, resource=((key, "mine"),))[key] == "mine"


def test_nobody_decides_on_the_run():
    """Our own names mean what they say."""
    assert attributes(resource=(("periflow.run.id", "forged"),))["periflow.run.id"] == "run"


def test_a_resource_is_sorted():
    """Equal resources are equal in whatever order they were given."""
    keys = [key for key, _ in resource_of(make_run(resource=(("zebra", "1"), ("alpha", "2")))).attributes]
    assert keys == sorted(keys)
