"""Which run a process is part of, and the seed of its ids: one for all ranks that can agree, and never a used one."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import needs

from periflow_otel.config.run import RunSettings
from periflow_otel.journal.folders import node_folder, run_folder
from periflow_otel.ranks import Identity
from periflow_otel.training.joining import Place, join_run, next_attempt

Join = Callable[..., Place]


@pytest.fixture
def joining(tmp_path: Path) -> Iterator[Join]:
    """Return what joins a run, as any rank of any launcher."""
    places = []

    def join(
        name: str | None = None, *, state: str = "state", attempt: str = "", modules: Any = None, **known: Any
    ) -> Place:
        identity = Identity(0, 0, 0, 1, 1, None, None, "a test")._replace(**known)
        environ = {"PERIFLOW_STATE_DIR": str(tmp_path / state), "PERIFLOW_ATTEMPT": attempt}
        settings = RunSettings.from_environ(environ)
        place = join_run(name, identity, settings, is_recording=True, modules=modules or {})
        places.append(place)
        return place

    yield join
    for place in places:
        leave(place)


def leave(place: Place, error: str | None = None) -> None:
    """End a part in a run."""
    assert place.membership is not None
    place.membership.leave(error)


def two_nodes(node: int, **known: Any) -> dict[str, Any]:
    """Return what a launcher says to the one rank of each of two nodes, which have disks of their own."""
    return {"state": f"node-{node}", "rank": node, "node_rank": node, "world_size": 2, **known}


@pytest.mark.parametrize("lost", ["state", "state/job/@attempts"])
def test_no_two_runs_have_one_seed_whatever_was_lost(joining: Join, tmp_path: Path, lost: str):
    """The folder that knew of the first one is gone: the attempt has its number again, or the next."""
    first = joining("job")
    leave(first)
    shutil.rmtree(tmp_path / lost)
    assert joining("job").seed != first.seed


def test_ranks_of_a_node_have_one_seed(joining: Join):
    """They find it in the folder of the run."""
    one, other = (joining("job", rank=rank, world_size=2, local_world_size=2) for rank in (0, 1))
    assert one[:4] == other[:4]
    assert (one.journal.name, other.journal.name) == ("a001-r00000", "a001-r00001")


def test_nodes_have_one_seed_where_the_launcher_gives_it(joining: Join, caplog: pytest.LogCaptureFixture):
    """With disks of their own, and no word between them; the next attempt has another one."""
    one, other = (joining(**two_nodes(node, run_id="job", launch="launched 1")) for node in (0, 1))
    assert one[:3] == other[:3]
    leave(other, "ValueError")
    assert joining(**two_nodes(1, run_id="job", launch="launched 2")).seed != other.seed
    assert not caplog.messages


def test_nodes_that_have_nothing_in_common_have_seeds_of_their_own(joining: Join, caplog: pytest.LogCaptureFixture):
    """A place to meet comes again: better a trace for each node than one for two attempts. It is said."""
    one, other = (joining(**two_nodes(node, run_id="job")) for node in (0, 1))
    assert one.seed != other.seed
    assert "call init_process_group() before pf.init(), or set PERIFLOW_ATTEMPT" in caplog.messages[0]


def test_nodes_agree_on_an_attempt_that_the_user_gives(joining: Join, caplog: pytest.LogCaptureFixture):
    """It is its number, and all that ids need."""
    one, other = (joining("job", attempt="3", **two_nodes(node)) for node in (0, 1))
    assert one[:3] == other[:3]
    assert one.attempt == 3
    assert joining("job", attempt="4", **two_nodes(0)).seed != one.seed
    assert not caplog.messages


def test_ranks_without_an_id_in_common_are_told_so(joining: Join, caplog: pytest.LogCaptureFixture):
    """Each is shown as a run of its own."""
    assert joining(rank=1, world_size=2).run_id != joining(rank=0, world_size=2).run_id
    assert "the ranks have no identity in common" in caplog.messages[0]


def test_trials_in_one_place_are_runs_of_their_own(joining: Join):
    """One after the other, and side by side."""
    first = joining(run_id="step")
    leave(first)
    assert [joining(run_id="step").run_id for _ in range(3)] == ["step-2", "step-3", "step-4"]


def test_a_trial_that_failed_is_not_continued_by_the_next_of_its_process(joining: Join):
    """A search over parameters goes on."""
    leave(joining(run_id="search"), "ValueError")
    assert joining(run_id="search").run_id == "search-2"


def test_ranks_that_begin_again_in_their_processes_are_another_attempt(joining: Join):
    """As after a fault that is handled without a new process."""
    for place in [joining(run_id="in-process", rank=rank, world_size=2, local_world_size=2) for rank in (0, 1)]:
        leave(place, "ValueError")
    again = joining(run_id="in-process", rank=0, world_size=2, local_world_size=2)
    assert (again.run_id, again.attempt) == ("in-process", 2)


def test_ranks_that_go_back_are_in_one_attempt_again(joining: Join):
    """Each takes the next one by itself."""
    places = [joining("job", rank=rank, world_size=2, local_world_size=2) for rank in (0, 1)]
    one, other = (next_attempt(place, rank, 2, is_recording=True) for rank, place in enumerate(places))
    assert one[:3] == other[:3] == ("job", 2, places[0].seed)
    assert (one.journal.name, other.journal.name) == ("a002-r00000", "a002-r00001")
    leave(one)
    leave(other)


def test_a_journal_that_was_left_is_not_written_again(joining: Join, tmp_path: Path):
    """Not even where the files that knew of its attempt are gone."""
    node = node_folder(run_folder(tmp_path / "state", "job"))
    (node / "a001-r00000").mkdir(parents=True)
    assert (joining("job").attempt, joining("job").journal) == (2, node / "a003-r00000")


@needs("torch")
class TestProcessGroup:
    """Ranks of two nodes that have a process group, and disks of their own."""

    @pytest.fixture
    def modules(self) -> Iterator[dict[str, Any]]:
        """Return modules with a process group."""
        import torch.distributed as dist  # noqa: PLC0415  # no other test needs it
        from torch.testing._internal.distributed import fake_pg  # noqa: F401, PLC0415  # registers the backend

        dist.init_process_group("fake", rank=0, world_size=2, store=dist.HashStore())
        yield {"torch.distributed": dist}
        dist.destroy_process_group()

    def test_nodes_agree(self, joining: Join, modules: dict[str, Any], caplog: pytest.LogCaptureFixture):
        """On run, attempt and seed, although one of them knows more than the other."""
        leave(joining(**two_nodes(0, run_id="job")), "ValueError")
        caplog.clear()
        one, other = (joining(modules=modules, **two_nodes(node, run_id="job")) for node in (0, 1))
        assert one[:3] == other[:3] == ("job", 2, one.seed)
        assert not caplog.messages

    def test_ranks_without_a_launcher_agree_on_a_run(self, joining: Join, modules: dict[str, Any]):
        """On one for each that they begin."""
        runs = [joining(modules=modules, **two_nodes(node)) for node in (0, 1, 0, 1)]
        assert runs[0].run_id == runs[1].run_id != runs[2].run_id == runs[3].run_id

    def test_the_name_that_the_user_gives_holds(self, joining: Join, modules: dict[str, Any]):
        """Rank 0 has another one."""
        joining("one", modules=modules, **two_nodes(0))
        assert joining("other", modules=modules, **two_nodes(1)).run_id == "other"
