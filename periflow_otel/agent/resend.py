"""Sends again what receivers did not take at first."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from periflow_otel.agent.dead_letters import DeadLetters, Letter, all_dead_letters
from periflow_otel.config.endpoints import OtlpSettings
from periflow_otel.config.export import ExportSettings
from periflow_otel.exporters import Verdict
from periflow_otel.exporters.otlp import OtlpExporter
from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.folders import node_folders
from periflow_otel.otlp import FIELDS
from periflow_otel.otlp.from_json import request_from_json

_AT_ONCE: Final = 500


class Resent(NamedTuple):
    """What became of the items that were set aside."""

    sent: int
    left: int
    message: str = ""
    """Why some are left."""


def folders_with_letters(state_dirs: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders of runs on this node that have something set aside."""
    for folder in (folder for state_dir in state_dirs for folder in node_folders(state_dir)):
        if any(all_dead_letters(folder)):
            yield folder


def resend(folder: Path, settings: ExportSettings) -> Resent:
    """Send again what is set aside in the folder of a run; what is not taken now either stays there.

    What was set aside for an exporter of another package stays too: there is no way from OTLP to it.

    Raises:
        OSError: The folder cannot be used, or the disk takes nothing: then some may be sent again the next time.
    """
    lock = take_agent_lock(folder)
    if lock is None:
        return Resent(0, 0, "an agent is at work")
    try:
        results = [_resend(letters, settings) for letters in all_dead_letters(folder)]
    finally:
        os.close(lock)
    message = next((each.message for each in results if each.message), "")
    return Resent(sum(each.sent for each in results), sum(each.left for each in results), message)


def _resend(letters: DeadLetters, settings: ExportSettings) -> Resent:
    otlp = {f"otlp.{signal}": each for signal, each in settings.otlp.items()}.get(letters.consumer)
    waiting = letters.read()
    if otlp is None:
        return Resent(0, len(waiting), f"no OTLP receiver is set for {letters.consumer}")
    exporter = OtlpExporter(otlp, encode=_encoder(otlp))
    messages: list[str] = []
    left: list[Letter] = []
    for begin in range(0, len(waiting), _AT_ONCE):
        left += _send(exporter, waiting[begin : begin + _AT_ONCE], messages)
    exporter.close()
    letters.keep_only(left)
    return Resent(len(waiting) - len(left), len(left), messages[-1] if messages else "")


def _send(exporter: OtlpExporter, letters: list[Letter], messages: list[str]) -> list[Letter]:
    """Send letters, in halves where somebody among them may be to blame; return those that were not taken."""
    outcome = exporter.export(letters)
    if outcome.verdict is Verdict.TAKEN:
        return []
    messages.append(outcome.message)
    if len(letters) == 1 or outcome.verdict not in (Verdict.REFUSED, Verdict.TOO_LARGE, Verdict.FAILED):
        return letters
    middle = len(letters) // 2
    return _send(exporter, letters[:middle], messages) + _send(exporter, letters[middle:], messages)


def _encoder(settings: OtlpSettings) -> Callable[[Sequence[Letter]], bytes]:
    field = FIELDS[settings.signal]

    def encode(letters: Sequence[Letter]) -> bytes:
        parts: list[Any] = [each for letter in letters for each in msgspec.json.decode(letter.data)[field]]
        data = msgspec.json.encode({field: parts})
        return data if settings.protocol == "http/json" else request_from_json(settings.signal, data)

    return encode
