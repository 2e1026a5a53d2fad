"""A terminal that nobody reads is never waited for, and training's own stream stays as it is."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from periflow_otel.terminal import Terminal, say


def fill(descriptor: int) -> int:
    """Write until nothing more is taken, and return how much was."""
    written = 0
    os.set_blocking(descriptor, False)
    try:
        while True:
            written += os.write(descriptor, b"." * 512)
    except BlockingIOError:
        return written
    finally:
        os.set_blocking(descriptor, True)


def drain(descriptor: int) -> bytes:
    """Return what can be read now."""
    os.set_blocking(descriptor, False)
    read = b""
    try:
        while chunk := os.read(descriptor, 1 << 16):
            read += chunk
    except BlockingIOError:
        pass
    return read


def pair(kind: str) -> tuple[int, int]:
    """Return the reading and the writing end of a connection."""
    if kind == "pipe":
        return os.pipe()
    if kind == "terminal":
        return os.openpty()
    return tuple(each.detach() for each in socket.socketpair())  # type: ignore[return-value]  # two of them


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_what_nobody_reads_is_dropped_and_the_next_line_comes(kind: str):
    """The call returns at once where the stream is full; when somebody has read, it is written to again."""
    reader, writer = pair(kind)
    terminal = Terminal(os.dup(writer))
    fill(writer)
    terminal.write("dropped\n" * 1000)
    drain(reader)
    terminal.write("shown\n")
    assert drain(reader).rstrip().endswith(b"shown")
    assert os.get_blocking(writer)


def test_a_line_takes_the_place_of_a_bar(monkeypatch: pytest.MonkeyPatch):
    """On a screen; the bar is drawn again below. What goes on with a line leaves it."""
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = os.openpty()
    terminal = Terminal(os.dup(writer))
    os.write(writer, b" 3%|#         | 3/100")
    for text in ("a line\n", "", "in two ", "parts\n"):
        terminal.write(text)
    assert drain(reader) == b" 3%|#         | 3/100\r\x1b[Ka line\r\n\r\x1b[Kin two parts\r\n"


@pytest.mark.parametrize("kind", ["pipe", "dumb terminal"])
def test_nothing_is_erased_where_nothing_can_be(kind: str, monkeypatch: pytest.MonkeyPatch):
    """A file, a pipe or a terminal without such signs gets the plain line."""
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb terminal" else "xterm")
    reader, writer = pair(kind.removeprefix("dumb "))
    Terminal(os.dup(writer)).write("a line\n")
    assert drain(reader).replace(b"\r", b"") == b"a line\n"


def test_text_that_fits_is_written_whole():
    """Though it is longer than what a pipe takes at once."""
    reader, writer = os.pipe()
    Terminal(writer).write("x" * 5000)
    assert drain(reader) == b"x" * 5000


def test_a_file_is_written_where_training_is_in_it(tmp_path: Path):
    """It shares the place with training, so that nothing is written over."""
    with (tmp_path / "log").open("w") as stream:
        stream.write("training\n")
        stream.flush()
        Terminal(os.dup(stream.fileno())).write("telemetry\n")
        stream.write("training again\n")
    assert (tmp_path / "log").read_text() == "training\ntelemetry\ntraining again\n"


def test_a_closed_terminal_takes_everything_and_writes_nothing():
    """Its other end sees the end of the stream; to close it again changes nothing."""
    reader, writer = os.pipe()
    terminal = Terminal(writer)
    terminal.close()
    terminal.close()
    assert terminal.write("x") == 1
    assert os.read(reader, 1) == b""


def test_a_stream_that_was_closed_is_no_terminal():
    """A service has none."""
    assert Terminal(-1).write("x") == 1


def test_a_reader_that_is_gone_does_no_harm():
    """The pipe is broken."""
    reader, writer = os.pipe()
    terminal = Terminal(writer)
    os.close(reader)
    assert terminal.write("x") == 1


def test_a_line_is_said_where_stderr_goes(capsys: pytest.CaptureFixture[str]):
    """In a notebook that is no file."""
    say("hello")
    assert capsys.readouterr().err == "hello\n"


def test_a_line_is_dropped_where_stderr_is_full():
    """A script that says something at its end must come to its end."""
    reader, writer = os.pipe()
    fill(writer)
    code = "from periflow_otel.terminal import say; say('hello')"
    assert subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=30, check=False).returncode == 0
    assert b"hello" not in drain(reader)
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
