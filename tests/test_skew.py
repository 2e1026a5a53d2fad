"""How far apart ranks begin a step: which of them is the last, and what becomes of steps that not all of them take."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from recorder import S, make_run

from periflow_otel import names
from periflow_otel.agent.skew import MAX_OPEN_STEPS, SkewReader, StepSkew
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.journal.cursors import Cursor, CursorFile
from periflow_otel.journal.folders import journal_folder
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import RankRun, RunFinished, StepEnded, encode
from periflow_otel.translate.telemetry import Histogram, Point


def ranks(count: int, attempt: int = 1) -> list[RankRun]:
    """Return the ranks of a node."""
    return [make_run(rank=rank, world_size=count, local_world_size=count, attempt=attempt) for rank in range(count)]


def begin(skew: StepSkew, runs: Iterable[RankRun], step: int, *starts_s: float) -> None:
    """Let each rank take a step that begins at a time of its own and ends at the same time as all others."""
    for run, start_s in zip(runs, starts_s, strict=False):
        skew.add(run, [StepEnded(step, int(start_s * S), int((100 - start_s) * S))])


def points(skew: StepSkew) -> dict[object, Point]:
    """Return what is reported, by the rank that was the last."""
    return {dict(point.attributes)[names.LAST_RANK]: point for _, point in skew.report(make_run(node_rank=3))}


def counts(skew: StepSkew) -> dict[object, int]:
    """Return how often each rank was the last."""
    return {rank: histogram(point).count for rank, point in points(skew).items()}


def histogram(point: Point) -> Histogram:
    """Return the value of a point, which is a histogram."""
    assert isinstance(point.value, Histogram)
    return point.value


def recorded(folder: Path, runs: Iterable[RankRun], steps: range) -> list[JournalWriter]:
    """Let each rank record steps, which it begins a second after the rank before it."""
    writers = []
    for run in runs:
        journal = journal_folder(folder, run.attempt, run.rank)
        journal.mkdir()
        writers.append(JournalWriter(journal, run))
        for step in steps:
            writers[-1].append(encode(StepEnded(step, (100 * step + run.rank) * S, 5 * S)))
    return writers


def read(folder: Path, *skews: StepSkew) -> list[RankJournal]:
    """Let agents that come after each other read the journals of a run, and return what the last one sees."""
    for skew in skews:
        journals = list(find_journals(folder, {}).values())
        for journal in journals:
            journal.look()
        reader = SkewReader(folder, skew)
        reader.read(journals[:1], is_urgent=True)  # the others begin a little later
        reader.read(journals, is_urgent=True)
    assert all(reader.cursor(each).position.sequence == each.head.sequence for each in journals)
    return [each for each in journals if reader.cursor(each).is_complete]


def test_the_last_rank_has_the_time_since_the_first():
    """Whatever the ranks between them do."""
    skew, runs = StepSkew(), ranks(3)
    begin(skew, runs, 1, 10.0, 12.5, 11.0)
    begin(skew, runs, 2, 20.25, 20.5, 20.0)
    begin(skew, runs, 3, 30.0, 30.25, 30.125)
    assert {rank: (histogram(point).count, histogram(point).sum) for rank, point in points(skew).items()} == {
        1: (3, 2.5 + 0.5 + 0.25)
    }
    begin(skew, runs, 4, 41.0, 40.0, 40.5)
    assert counts(skew) == {0: 1, 1: 3}


def test_a_point_says_which_node_and_since_when():
    """Each agent counts for its own node, from its own start."""
    skew, runs = StepSkew(), ranks(2)
    begin(skew, runs, 1, 1.0, 2.0)
    (point,) = points(skew).values()
    assert point.instrument == names.STEP_SKEW
    assert dict(point.attributes) == {names.LAST_RANK: 1, names.NODE_RANK: 3}
    assert 0 < point.start_unix_ns <= point.time_unix_ns


def test_ranks_may_be_read_one_after_the_other():
    """A step counts when the last of them has taken it, in whichever order they are read."""
    skew, (first, second) = StepSkew(), ranks(2)
    for step in (1, 2, 3):
        begin(skew, [second], step, step + 0.5)
    assert counts(skew) == {}
    for step in (3, 1, 2):
        begin(skew, [first], step, step)
    assert counts(skew) == {1: 3}


def test_attempts_are_not_mixed():
    """The same step of another attempt is another step."""
    skew, before, after = StepSkew(), ranks(2, attempt=1), ranks(2, attempt=2)
    begin(skew, before[:1], 5, 1.0)
    begin(skew, after[1:], 5, 100.0)
    assert counts(skew) == {}
    begin(skew, after[:1], 5, 100.5)
    assert counts(skew) == {0: 1}


def test_steps_that_a_rank_does_not_take_are_given_up():
    """Nothing grows when a rank is gone, and the steps of the others are not compared with old ones."""
    skew, (first, second) = StepSkew(), ranks(2)
    for step in range(1, 3 * MAX_OPEN_STEPS):
        begin(skew, [first], step, step)
    assert len(skew._starts) == MAX_OPEN_STEPS
    begin(skew, [second], 1, 1.0)
    assert counts(skew) == {}
    begin(skew, [second], 3 * MAX_OPEN_STEPS - 1, 3 * MAX_OPEN_STEPS)
    assert counts(skew) == {1: 1}


def test_one_series_at_most_for_each_rank():
    """However many steps there are."""
    skew, runs = StepSkew(), ranks(4)
    for step in range(100):
        begin(skew, runs, step, *((step + rank) % 4 for rank in range(4)))
    assert counts(skew) == dict.fromkeys(range(4), 25)
    assert skew._starts == {}


def test_an_agent_goes_on_where_the_one_before_was(tmp_path: Path):
    """No step counts twice, and how far it is stands in one file however many ranks there are."""
    before, after = StepSkew(), StepSkew()
    writers = recorded(tmp_path, ranks(3), range(1, 6))
    read(tmp_path, before)
    for rank, writer in enumerate(writers):
        writer.append(encode(StepEnded(6, (600 + rank) * S, 5 * S)))
    read(tmp_path, after)
    assert (counts(before), counts(after)) == ({2: 5}, {2: 1})
    nothing_new = StepSkew()
    read(tmp_path, nothing_new)
    assert nothing_new._starts == {}
    assert [each.name for each in tmp_path.rglob("*.cursor")] == ["skew.cursor"]


def test_a_later_journal_of_the_same_name_is_read_from_its_beginning(tmp_path: Path):
    """The one before was read to its end, and is gone."""
    recorded(tmp_path, ranks(2), range(1, 4))
    read(tmp_path, StepSkew())
    for rank in range(2):
        shutil.rmtree(journal_folder(tmp_path, 1, rank))
    later = [make_run(rank=rank, world_size=2, local_world_size=2, started_unix_ns=9 * S) for rank in range(2)]
    recorded(tmp_path, later, range(1, 8))
    skew = StepSkew()
    read(tmp_path, skew)
    assert counts(skew) == {1: 7}


def test_a_run_that_is_over_is_read_to_its_end(tmp_path: Path):
    """The next agent knows that too, and does not wait for more: the journal can go."""
    writers = recorded(tmp_path, ranks(2), range(1, 4))
    writers[1].append(encode(RunFinished(999 * S)))
    for skews in ([StepSkew()], [StepSkew(), StepSkew()]):
        assert [each.run.rank for each in read(tmp_path, *skews)] == [1]


def test_a_file_that_says_nothing_is_no_place(tmp_path: Path):
    """What another version of this package has written, for instance: steps count again."""
    recorded(tmp_path, ranks(2), range(1, 4))
    CursorFile(tmp_path, "skew").save(Cursor(state=b"x"))
    skew = StepSkew()
    read(tmp_path, skew)
    assert counts(skew) == {1: 3}
