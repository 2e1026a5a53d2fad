"""Sends OTLP JSON files to a receiver, from where an earlier attempt came to.

A line is a request of its own, or several together are. How far a file is sent is noted in the state folder, by what
the file is and not by its name, since files are renamed when they grow large. A line is noted once the receiver has
it; one that it refuses for good is counted and left behind.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from periflow_otel.agent.delivery import Batch, Delivery
from periflow_otel.agent.tracks import Account
from periflow_otel.config.endpoints import OtlpSettings, Signal
from periflow_otel.config.export import ExportSettings
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Item
from periflow_otel.exporters.otlp import OtlpExporter
from periflow_otel.journal.files import replace_file
from periflow_otel.otlp import FIELDS
from periflow_otel.otlp.from_json import request_from_json
from periflow_otel.processes import Process
from periflow_otel.recordings import open_recording
from periflow_otel.records import RankRun

FOLDER: Final = "resent"
"""In the state folder: how far each file is sent."""
_BATCH_BYTES: Final = 1 << 20
_MAX_LINE_BYTES: Final = 64 << 20


class Progress(msgspec.Struct):
    """How far a file is sent to a receiver."""

    offset: int = 0
    """Up to here it is done with, in bytes."""
    lines: int = 0
    """So many were taken,"""
    refused: int = 0
    """so many were refused for good,"""
    strange: int = 0
    """and so many are no OTLP JSON."""


class Sent(NamedTuple):
    """What became of a file."""

    before: Progress
    now: Progress
    size_bytes: int
    """Without a line at its end that is not whole yet."""
    message: str = ""
    """Why lines were refused."""

    @property
    def is_complete(self) -> bool:
        """Whether every line is with the receiver."""
        return self.now.offset >= self.size_bytes and not self.now.refused

    @property
    def is_otlp(self) -> bool:
        """Whether any line of it is OTLP JSON, as far as it is known."""
        return bool(self.now.lines or self.now.refused or not self.now.strange)


def resend_file(
    path: Path,
    settings: ExportSettings,
    state_dir: Path,
    timeout_s: float,
    show: Callable[[int, int], None] = lambda _done, _size: None,
    *,
    anew: bool = False,
) -> Sent:
    """Send the lines of a file that have not been sent yet.

    Args:
        path: The file.
        settings: Where to send.
        state_dir: Where to note how far it came.
        timeout_s: How long to go on while nothing passes.
        show: Told how many bytes of how many are done with.
        anew: Begin at the start, whatever was sent before.

    Raises:
        ConfigurationError: No receiver is set for what is in the file.
        OSError: The file cannot be read, or the note cannot be written.
        EOFError: It is compressed, and cut off.
    """
    with open_recording(path) as file, ExitStack() as stack:
        note = _note_path(file, settings, state_dir)
        before = Progress() if anew else _load(note)
        size_bytes = _whole_bytes(file)
        sender = _Sender(settings, timeout_s, stack)
        now = msgspec.structs.replace(before)
        file.seek(now.offset)
        for signal, lines in _batches(file, size_bytes):
            if signal is None:
                now.strange += len(lines)
            elif not sender.send(signal, lines):
                break
            now.offset += sum(map(len, lines))
            now.lines, now.refused = before.lines + sender.taken, before.refused + sender.refused
            replace_file(note, msgspec.json.encode(now))
            show(now.offset, size_bytes)
    return Sent(before, now, size_bytes, sender.message)


class _Sender:
    """Delivers lines to the receivers of all signals."""

    def __init__(self, settings: ExportSettings, timeout_s: float, stack: ExitStack) -> None:
        self.message = ""
        self.refused = 0
        self._settings = settings
        self._timeout_s = timeout_s
        self._stack = stack
        self._accounts = {signal: Account() for signal in FIELDS}
        self._deliveries: dict[Signal, Delivery] = {}

    @property
    def taken(self) -> int:
        return sum(account.delivered for account in self._accounts.values())

    def send(self, signal: Signal, lines: Sequence[bytes]) -> bool:
        """Deliver lines; return whether they are done with in time."""
        delivery = self._delivery(signal)
        delivery.give([Batch(_NOBODY, self._accounts[signal], lines)])
        deadline_s = time.monotonic() + self._timeout_s
        while not delivery.is_done():
            if delivery.due_s > deadline_s:
                return False
            time.sleep(max(0.0, delivery.due_s - time.monotonic()))
            before = self._accounts[signal].delivered
            delivery.attempt()
            if self._accounts[signal].delivered > before:
                deadline_s = time.monotonic() + self._timeout_s
        return True

    def _delivery(self, signal: Signal) -> Delivery:
        if signal not in self._deliveries:
            exporter = _exporter(self._settings, signal)
            self._stack.enter_context(closing(exporter))
            self._deliveries[signal] = Delivery(signal, exporter, self._lose)
        return self._deliveries[signal]

    def _lose(self, _item: Item, _reason: str, message: str) -> bool:
        self.refused += 1
        self.message = message
        return True


def _exporter(settings: ExportSettings, signal: Signal) -> OtlpExporter:
    otlp = settings.otlp.get(signal)
    if otlp is None:
        message = f"no OTLP receiver is set for {signal}; set OTEL_EXPORTER_OTLP_ENDPOINT, or give --to"
        raise ConfigurationError(message)
    return OtlpExporter(otlp, encode=_encoder(otlp))


def _encoder(settings: OtlpSettings) -> Callable[[Sequence[Item]], bytes]:
    """Return what makes one request of lines: in protobuf, requests one after the other are one."""
    field = FIELDS[settings.signal]

    def encode(items: Sequence[Item]) -> bytes:
        if settings.protocol == "http/json":
            parts = [each for _, line in items for each in msgspec.json.decode(line, type=dict[str, Any])[field]]
            return msgspec.json.encode({field: parts})
        return b"".join(request_from_json(settings.signal, line) for _, line in items)

    return encode


def _batches(file: BinaryIO, end: int) -> Iterator[tuple[Signal | None, list[bytes]]]:
    """Yield lines up to an offset in requests of one signal; None for what is no OTLP JSON."""
    signal: Signal | None = None
    lines: list[bytes] = []
    size_bytes, position = 0, file.tell()
    while position < end:
        line = file.readline(_MAX_LINE_BYTES)
        position += len(line)
        its = _signal_of(line)
        if lines and (its != signal or size_bytes + len(line) > _BATCH_BYTES):
            yield signal, lines
            lines, size_bytes = [], 0
        signal, size_bytes = its, size_bytes + len(line)
        lines.append(line)
    if lines:
        yield signal, lines


def _signal_of(line: bytes) -> Signal | None:
    begin = line[:64].lstrip()
    return next((signal for signal, field in FIELDS.items() if begin.startswith(f'{{"{field}"'.encode())), None)


def _whole_bytes(file: BinaryIO) -> int:
    """Return how long a file is without the line that somebody is writing."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - (1 << 16))
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _note_path(file: BinaryIO, settings: ExportSettings, state_dir: Path) -> Path:
    """Return where it is noted how far a file is sent to these receivers; another file has another place."""
    status = os.fstat(file.fileno())
    places = [(otlp.place, otlp.protocol) for otlp in settings.otlp.values()]
    file.seek(0)
    identity = repr((status.st_dev, status.st_ino, file.readline(4096), places))
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / blake2b(identity.encode(), digest_size=16).hexdigest()


def _load(note: Path) -> Progress:
    try:
        return msgspec.json.decode(note.read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return Progress()


_NOBODY: Final = RankRun(
    run_id="", attempt=1, rank=0, local_rank=0, node_rank=0, world_size=1, mode="local",
    process=Process.current(), started_unix_ns=0, initial_step=0,
)  # fmt: skip
"""Whose the lines are does not matter: they say it themselves."""
