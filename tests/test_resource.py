"""Who emits: what ranks share, and what the user has said."""

import pytest
from recorder import make_run

from periflow_otel.processes import Process
from periflow_otel.translate.resource import resource_of


def attributes(**fields: object) -> dict[str, object]:
    """Return the attributes of a rank's resource."""
    return dict(resource_of(make_run(**fields)).attributes)


def test_a_resource_says_which_run_and_node():
    """Run, attempt, node and mode, besides what the process has found out about itself."""
    resource = (("host.name", "node-3"), ("service.name", "bert"))
    found = attributes(run_id="abc", attempt=2, node_rank=3, world_size=32, mode="local", resource=resource)
    assert found == {
        "host.name": "node-3",
        "service.name": "bert",
        "service.namespace": "periflow",
        "service.instance.id": "abc/3",
        "periflow.run.id": "abc",
        "periflow.run.attempt": 2,
        "periflow.node_rank": 3,
        "periflow.world_size": 32,
        "periflow.mode": "local",
    }


def test_ranks_of_a_node_have_one_resource():
    """What differs between them is on spans and points; another node or attempt is another resource."""
    resource = resource_of(make_run(rank=0))
    assert resource == resource_of(make_run(rank=5, local_rank=5, process=Process(99, 1, "boot", 1)))
    assert resource != resource_of(make_run(node_rank=1))
    assert resource != resource_of(make_run(attempt=2))


@pytest.mark.parametrize("key", ["service.namespace", "service.instance.id"])
def test_the_user_decides_on_the_service(key: str):
    """What OTEL_RESOURCE_ATTRIBUTES says of the service wins over our default."""
    assert attributes(resource=((key, "mine"),))[key] == "mine"


def test_nobody_decides_on_the_run():
    """Our own names mean what they say."""
    assert attributes(resource=(("periflow.run.id", "forged"),))["periflow.run.id"] == "run"


def test_a_resource_is_sorted():
    """Equal resources are equal in whatever order they were given."""
    keys = [key for key, _ in resource_of(make_run(resource=(("zebra", "1"), ("alpha", "2")))).attributes]
    assert keys == sorted(keys)
