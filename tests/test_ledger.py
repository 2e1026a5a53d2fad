"""What the next attempt of a rank learns of those before it, whatever is left of them."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from recorder import S, make_run

import periflow_otel as pf
from periflow_otel.journal.attempts import Made, Wish, join_agreed
from periflow_otel.journal.folders import LEDGER, journal_folder, make_private
from periflow_otel.journal.ledger import find_earlier, last_attempt, note_end, note_loss, noted_loss
from periflow_otel.journal.segment import segment_path
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import Earlier, RankLost

STARTED_NS = 1000 * S


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the folder of a run on a node."""
    folder = tmp_path / "run" / "node"
    make_private(folder)
    return folder


def train(
    node: Path,
    attempt: int,
    *,
    rank: int = 0,
    last_step: int = 0,
    checkpoint: int = 0,
    earlier: Earlier | None = None,
    is_ended: bool = True,
) -> Path:
    """Leave the journal of an attempt that came so far; return its folder."""
    folder = journal_folder(node, attempt, rank)
    folder.mkdir()
    run = make_run(attempt=attempt, rank=rank, started_unix_ns=STARTED_NS * attempt, earlier=earlier)
    writer = JournalWriter(folder, run, segment_bytes=4096)
    for step in range(last_step):
        writer.begin_step(step + 1, STARTED_NS * attempt + (step + 1) * S)
    if checkpoint:
        writer.note_checkpoint(checkpoint)
    if is_ended:
        writer.close()
    return folder


def deliver(journal: Path, attempt: int, ended_unix_ns: int) -> None:
    """Let the agent be done with a journal."""
    note_end(journal, attempt, ended_unix_ns)
    for segment in journal.iterdir():
        segment.unlink()
    journal.rmdir()


def test_the_first_attempt_has_none_before_it(node: Path):
    """Nor has it where there is no folder at all."""
    assert find_earlier(node, 0, 1) is None
    train(node, 1, last_step=5)
    assert find_earlier(node, 0, 1) is None
    assert find_earlier(node.parent.parent / "other" / "node", 0, 2) is None


def test_the_journal_of_the_attempt_before_tells(node: Path):
    """Its last step, its last checkpoint and when its process was found to be gone."""
    journal = train(node, 1, last_step=17, checkpoint=10)
    note_loss(journal, RankLost(STARTED_NS + 20 * S, 17, STARTED_NS + 17 * S))
    assert find_earlier(node, 0, 2) == Earlier(1, 17, 10, STARTED_NS + 20 * S)


def test_a_process_that_nobody_missed_was_there_in_its_last_step(node: Path):
    """The agent was killed too, or has not looked yet."""
    train(node, 1, last_step=17)
    assert find_earlier(node, 0, 2) == Earlier(1, 17, 0, STARTED_NS + 17 * S)


def test_a_process_that_died_before_its_first_step_was_there_at_its_start(node: Path):
    """The gap is counted from then, and not from 1970."""
    train(node, 1)
    assert find_earlier(node, 0, 2) == Earlier(1, 0, 0, STARTED_NS)


def test_an_attempt_is_known_when_its_journal_is_delivered_and_gone(node: Path):
    """A line stays."""
    deliver(train(node, 1, last_step=17, checkpoint=10), 1, STARTED_NS + 30 * S)
    assert not journal_folder(node, 1, 0).exists()
    assert find_earlier(node, 0, 2) == Earlier(1, 17, 10, STARTED_NS + 30 * S)


@pytest.mark.parametrize("is_going", [False, True])
def test_a_journal_that_is_going_right_now_is_not_believed(node: Path, is_going: object):
    """Its segments go one by one, and the last first perhaps: the line is there before that."""
    journal = train(node, 1, last_step=17, checkpoint=10)
    note_end(journal, 1, STARTED_NS + 30 * S)
    if is_going:
        segment_path(journal, 1).unlink()
    assert find_earlier(node, 0, 2) == Earlier(1, 17, 10, STARTED_NS + 30 * S)


def test_each_rank_has_its_own(node: Path):
    """One may have come further than another."""
    train(node, 1, rank=0, last_step=17)
    train(node, 1, rank=1, last_step=16)
    assert [find_earlier(node, rank, 2) for rank in (0, 1, 2)] == [
        Earlier(1, 17, 0, STARTED_NS + 17 * S),
        Earlier(1, 16, 0, STARTED_NS + 16 * S),
        None,
    ]


def test_the_last_attempt_counts_wherever_it_was(node: Path):
    """A rank may have moved to another node, and the folders be shared."""
    other = node.parent / "other"
    make_private(other)
    train(node, 1, last_step=50)
    deliver(train(other, 2, last_step=60), 2, 2 * STARTED_NS + 70 * S)
    join_agreed(other, Wish(0, Made("seed", 2, None), 2))
    train(node, 4, last_step=90)
    assert find_earlier(node, 0, 3) == Earlier(2, 60, 0, 2 * STARTED_NS + 70 * S)


def test_what_was_done_stays_done_when_the_next_attempt_dies_early(node: Path):
    """The third attempt does again what the first had done, although the second came to nothing."""
    train(node, 1, last_step=150, checkpoint=100)
    train(node, 2, earlier=find_earlier(node, 0, 2))
    third = find_earlier(node, 0, 3)
    assert third == Earlier(2, 150, 100, 2 * STARTED_NS)
    deliver(train(node, 3, last_step=120, checkpoint=110, earlier=third), 3, 9 * STARTED_NS)
    assert find_earlier(node, 0, 4) == Earlier(3, 150, 110, 9 * STARTED_NS)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1,2]", b"\xff"])
def test_a_damaged_line_is_as_none(node: Path, damage: bytes):
    """Nothing raises."""
    deliver(train(node, 1, last_step=17), 1, STARTED_NS)
    (node / LEDGER / "a001-r00000").write_bytes(damage)
    assert find_earlier(node, 0, 2) is None


def test_a_damaged_journal_is_as_none(node: Path):
    """Its header tells nothing."""
    journal = train(node, 1, last_step=17)
    segment_path(journal, 1).write_bytes(b"damaged")
    assert find_earlier(node, 0, 2) is None


def test_a_line_that_cannot_be_written_stops_nobody(node: Path):
    """The next attempt knows less."""
    (node / LEDGER).write_bytes(b"in the way")
    deliver(train(node, 1, last_step=17), 1, STARTED_NS)
    assert find_earlier(node, 0, 2) is None


def test_a_loss_is_told_the_same_way_each_time(node: Path):
    """It is written down once, so that a restarted agent exports the same."""
    journal, loss = train(node, 1, last_step=3), RankLost(5, 3, 1)
    assert noted_loss(journal) is None
    note_loss(journal, loss)
    assert noted_loss(journal) == loss
    (journal / "lost").write_bytes(msgspec.msgpack.encode(["no", "loss"]))
    assert noted_loss(journal) is None


def test_an_attempt_that_goes_on_is_not_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two processes with one run id stand beside each other; the second restarts nothing until the first is gone."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    code = "import periflow_otel as pf, sys; pf.init(run_id='same'); print('begun', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        beside = pf.TrainingRun(run_id="same", local_log_name=tmp_path / "a.log")
        other.communicate(b"")
        beside.shutdown()
    after = pf.TrainingRun(run_id="same", local_log_name=tmp_path / "a.log")
    after.shutdown()
    assert beside.info.earlier is None
    assert (beside.info.attempt, after.info.attempt) == (2, 3)
    assert after.info.earlier is not None


def test_the_last_attempt_is_known_by_lines_and_by_journals(node: Path):
    """Of what is delivered a line stays; what nobody has delivered is still there."""
    deliver(train(node, 1, last_step=17), 1, STARTED_NS + 30 * S)
    deliver(train(node, 2, rank=0, last_step=29), 2, STARTED_NS + 60 * S)
    train(node, 2, rank=1, last_step=28)
    entries = last_attempt(node)
    assert [(entry.run.rank, entry.attempt, entry.last_step) for entry in entries if entry.run] == [
        (0, 2, 29),
        (1, 2, 28),
    ]


def test_a_process_that_did_not_end_its_run_is_lost(node: Path):
    """Whether somebody has noticed, or nobody was there to."""
    train(node, 1, rank=0, last_step=17, is_ended=False)
    journal = train(node, 1, rank=1, last_step=17, is_ended=False)
    note_loss(journal, RankLost(STARTED_NS + 20 * S, 17, STARTED_NS + 17 * S))
    deliver(journal, 1, STARTED_NS + 30 * S)
    deliver(train(node, 1, rank=2, last_step=17), 1, STARTED_NS + 30 * S)
    assert [entry.is_lost for entry in last_attempt(node)] == [True, True, False]


@pytest.mark.parametrize("is_delivered", [False, True])
def test_a_run_that_was_ended_is_not_lost(node: Path, is_delivered: object):
    """Although its process was found to be gone before the end was read."""
    journal = train(node, 1, last_step=17)
    note_loss(journal, RankLost(STARTED_NS + 20 * S, 17, STARTED_NS + 17 * S))
    if is_delivered:
        deliver(journal, 1, STARTED_NS + 30 * S)
    assert [entry.is_lost for entry in last_attempt(node)] == [False]


def test_a_journal_of_an_attempt_before_is_not_of_the_last(node: Path):
    """Nobody has delivered it yet."""
    train(node, 1, rank=1, last_step=17)
    deliver(train(node, 2, rank=0, last_step=29), 2, STARTED_NS + 60 * S)
    assert [(entry.attempt, entry.last_step) for entry in last_attempt(node)] == [(2, 29)]


def test_a_line_is_believed_before_a_journal_that_is_going(node: Path):
    """It tells when the process was last there."""
    note_end(train(node, 1, last_step=17), 1, STARTED_NS + 30 * S)
    assert [entry.last_seen_unix_ns for entry in last_attempt(node)] == [STARTED_NS + 30 * S]


def test_a_line_that_is_damaged_tells_nothing(node: Path):
    """As one of an earlier version, or of a full disk."""
    deliver(train(node, 1, last_step=17), 1, STARTED_NS + 30 * S)
    (node / "ledger" / "a001-r00000").write_bytes(b"{")
    assert last_attempt(node) == []
