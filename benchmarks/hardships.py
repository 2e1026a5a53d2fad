"""What is done to a training from outside: a limit, a full disk, a receiver that goes away. See time_to_cause.py."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

GROUPS = Path("/sys/fs/cgroup")
"""Of version 1, with a folder for each controller."""


class Watched(Protocol):
    """The training, as far as it matters here."""

    name: str
    folder: Path
    environ: dict[str, str]
    before_s: float
    ranks: list[int]
    """Processes that train."""

    def pids(self) -> list[int]:
        """Return the processes that there are now: ranks and agents."""

    def onset_s(self) -> float | None:
        """Return when it has fallen ill; None while it is well."""

    def fall_ill(self) -> None:
        """Note that it does now."""


@contextmanager
def receiver_that_goes_away(watched: Watched) -> Iterator[None]:
    """Take telemetry until the onset."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    watched.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    with _beside(lambda is_over: _go_away(watched, server, is_over)):
        yield


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _go_away(watched: Watched, server: ThreadingHTTPServer, is_over: threading.Event) -> None:
    is_over.wait(watched.before_s)
    server.shutdown()
    server.server_close()
    watched.fall_ill()


@contextmanager
def nobody_who_listens(watched: Watched) -> Iterator[None]:
    """Give it an endpoint where nobody is, and a small journal."""
    watched.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    watched.environ["PERIFLOW_JOURNAL_MAX_BYTES"] = str(32 << 20)
    yield


def throttled(watched: Watched) -> AbstractContextManager[None]:
    """Give it a fifth of a processor from the onset on; before, two of them."""
    return _group(watched, "cpu", ("cpu.cfs_quota_us", "200000"), ("cpu.cfs_quota_us", "20000"))


def slow_disk(watched: Watched) -> AbstractContextManager[None]:
    """Let it read two megabytes a second from the onset on."""
    (watched.folder / "data").write_bytes(os.urandom(32 << 20))
    os.sync()
    device = watched.folder.stat().st_dev
    limit = f"{os.major(device)}:{os.minor(device)} {2 << 20}"
    return _group(watched, "blkio", None, ("blkio.throttle.read_bps_device", limit))


@contextmanager
def little_memory(watched: Watched) -> Iterator[None]:
    """Give it 350 MB, and swap space."""
    swap = watched.folder / "swap"
    _run("fallocate", "-l", "600M", str(swap))
    swap.chmod(0o600)
    _run("mkswap", str(swap))
    _run("swapon", str(swap))
    try:
        with _group(watched, "memory", ("memory.limit_in_bytes", str(350 << 20)), None):
            yield
    finally:
        _run("swapoff", str(swap))


@contextmanager
def small_disk(watched: Watched) -> Iterator[None]:
    """Let its folder have 400 MB."""
    _run("mount", "-t", "tmpfs", "-o", "size=400m", "none", str(watched.folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(watched.folder))


def held_for_a_while(watched: Watched) -> AbstractContextManager[None]:
    """Stop it for half a minute, as from a terminal."""

    def hold(is_over: threading.Event) -> None:
        is_over.wait(watched.before_s / 2)
        ranks = watched.ranks
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in ranks:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            is_over.wait(30)

    return _beside(hold)


@contextmanager
def _group(
    watched: Watched, controller: str, before: tuple[str, str] | None, at_onset: tuple[str, str] | None
) -> Iterator[None]:
    """Keep its processes in a control group, with a limit from the beginning or from the onset on."""
    group = GROUPS / controller / f"{watched.folder.name}"
    group.mkdir()

    def keep(is_over: threading.Event) -> None:
        _limit(group, before)
        is_limited = False
        while not is_over.wait(1):
            for pid in watched.pids():
                with suppress(OSError):
                    (group / "cgroup.procs").write_text(str(pid))
            if watched.onset_s() and not is_limited:
                is_limited = True
                _limit(group, at_onset)

    try:
        with _beside(keep):
            yield
    finally:
        _limit(group, before)
        _remove(group)


def _limit(group: Path, limit: tuple[str, str] | None) -> None:
    if limit:
        (group / limit[0]).write_text(limit[1])


def _remove(group: Path) -> None:
    """Remove a control group, once its processes are gone."""
    for _ in range(100):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


@contextmanager
def _beside(work: "Work") -> Iterator[None]:
    """Do something in a thread, which is told when it is over."""
    is_over = threading.Event()
    thread = threading.Thread(target=work, args=(is_over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(5)


class Work(Protocol):
    """What goes on beside a training."""

    def __call__(self, is_over: threading.Event, /) -> None:
        """Do it until it is over."""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
