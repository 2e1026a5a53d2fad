"""``periflow-otel doctor``: what goes where, whether it gets there, and how the runs on this node are."""

import errno
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from periflow_otel import names
from periflow_otel.config import ExportSettings, OtlpSettings, RunSettings, find_state_dirs
from periflow_otel.errors import PeriFlowError
from periflow_otel.journal.cursors import SUFFIX, load_cursor
from periflow_otel.journal.folders import AGENT_LOG, journal_folders, node_folders
from periflow_otel.journal.processes import is_process_alive
from periflow_otel.journal.reader import JournalReader
from periflow_otel.journal.segment import SEGMENT_BYTES
from periflow_otel.ranks import Environ, describe, find_identity, require_cloud
from periflow_otel.records import RunStarted
from periflow_otel.translate.steps import SAMPLED_OUT

STALLED_S: Final = 30.0
"""A consumer with something to deliver that has delivered nothing for so long is in trouble."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    text: str
    is_fault: bool = False


def examine(environ: Environ) -> Iterator[Finding]:
    """Look at the settings, the destinations, the folders and the runs, one after the other."""
    try:
        settings, export = RunSettings.from_environ(environ), ExportSettings.from_environ(environ)
        yield from _who(environ, settings)
    except PeriFlowError as error:
        yield Finding("settings", str(error), is_fault=True)
        return
    yield _state_folder(settings)
    if settings.is_disabled:
        yield Finding("exporters", "everything is off, as OTEL_SDK_DISABLED is true")
    else:
        yield from _destinations(export)
    yield from _runs(environ)


def _who(environ: Environ, settings: RunSettings) -> Iterator[Finding]:
    identity = find_identity(environ)
    yield Finding("mode", f"cloud, as {names.PERIFLOW_ENABLED} is 1" if settings.is_cloud else "local")
    if settings.is_cloud:
        require_cloud(environ)
    yield Finding("process", describe(identity))
    yield Finding("run id", settings.run_id or identity.run_id or "made up by each run")


def _state_folder(settings: RunSettings) -> Finding:
    folder = settings.state_dir
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    text = f"{folder}, {free >> 20} MiB free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("journals", f"{text}, cannot be written; set {names.STATE_DIR}", is_fault=True)
    if free < SEGMENT_BYTES:
        text += f"; a rank needs {SEGMENT_BYTES >> 20} MiB, so make room or set {names.STATE_DIR}"
    return Finding("journals", text, is_fault=free < SEGMENT_BYTES)


def _destinations(export: ExportSettings) -> Iterator[Finding]:
    if not export.is_cloud:
        has_json = export.writes_traces_file or export.writes_metrics_file
        yield Finding("files", f"the metric log{', and OTLP JSON files beside it' if has_json else ''}")
    for otlp in (export.otlp_traces, export.otlp_metrics):
        if otlp is not None:
            yield _try(otlp)
    if export.otlp_traces is None and export.otlp_metrics is None:
        yield Finding("OTLP", "nowhere; OTEL_EXPORTER_OTLP_ENDPOINT names a receiver")
    for name in dict.fromkeys((*export.traces_exporters, *export.metrics_exporters)):
        if name != "otlp":
            yield Finding(name, "an exporter of another package; not tried")
    if export.serves_prometheus:
        yield _endpoint(export)


def _try(otlp: OtlpSettings) -> Finding:
    """Send a request with nothing in it."""
    from periflow_otel.exporters.otlp import OtlpExporter  # noqa: PLC0415  # takes a while
    from periflow_otel.exporters.otlp_answers import Accepted  # noqa: PLC0415  # as above

    where = f"{otlp.endpoint} ({otlp.protocol})"
    exporter = OtlpExporter(otlp)
    started_s = time.monotonic()
    answer = exporter.probe()
    took_ms = (time.monotonic() - started_s) * 1000
    exporter.close()
    if isinstance(answer, Accepted):
        return Finding(otlp.signal, f"{where} accepts them, in {took_ms:.0f} ms")
    return Finding(otlp.signal, f"{where} does not take them: {answer.message}", is_fault=True)


def _endpoint(export: ExportSettings) -> Finding:
    host, port = export.prometheus_host, export.prometheus_port
    text = f"http://{host}:{port or '(any)'}/metrics while a run goes on"
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return Finding("Prometheus", f"{text}: {error.strerror}", is_fault=True)
        text += "; somebody else is there now, so it would be the next free port"
    return Finding("Prometheus", text)


def _runs(environ: Environ) -> Iterator[Finding]:
    """Tell of each run whose journals are not delivered."""
    for folder in (folder for state_dir in find_state_dirs(environ) for folder in node_folders(state_dir)):
        ranks = [(each, run) for each in journal_folders(folder) if (run := JournalReader(each).run())]
        if ranks:
            yield _run(folder, ranks)


def _run(folder: Path, ranks: list[tuple[Path, RunStarted]]) -> Finding:
    alive = [run for _, run in ranks if is_process_alive(run.pid, run.process_start, run.boot_id)]
    step = max(JournalReader(journal).head().step for journal, _ in ranks)
    texts = [f"{len(alive)} of {len(ranks)} ranks are at work, in step {step}" if alive else f"over, after step {step}"]
    waiting, dropped = _backlog(ranks, is_over=not alive)
    texts += [f"{count} records wait for {consumer}" for consumer, count in waiting.items()]
    texts += [f"{consumer} has dropped {count} ({reason})" for (consumer, reason), count in dropped.items()]
    if waiting and not alive:
        texts.append("periflow-otel replay delivers them")
    if (waiting or dropped) and (said := _last_line(folder / AGENT_LOG)):
        texts.append(f"the agent said: {said}")
    return Finding(f"run {ranks[0][1].run_id}", "; ".join(texts), is_fault=bool(waiting or dropped))


def _backlog(ranks: list[tuple[Path, RunStarted]], *, is_over: bool) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Count what waits though it should be delivered by now, and what was dropped for other reasons than sampling."""
    waiting: Counter[str] = Counter()
    dropped: Counter[tuple[str, str]] = Counter()
    for journal, run in ranks:
        end = JournalReader(journal).head().sequence
        for consumer in run.consumers:
            cursor = load_cursor(journal, consumer)
            if end > cursor.position.sequence and (is_over or _idle_s(journal, consumer, run) > STALLED_S):
                waiting[consumer] += end - cursor.position.sequence
            for reason, count in cursor.dropped.items():
                if reason != SAMPLED_OUT:
                    dropped[consumer, reason] += count
    return waiting, dropped


def _idle_s(journal: Path, consumer: str, run: RunStarted) -> float:
    """Return how long ago a consumer delivered something."""
    with suppress(OSError):
        return time.time() - (journal / f"{consumer}{SUFFIX}").stat().st_mtime
    return time.time() - run.started_unix_ns / 1e9


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if "periflow_otel: " in line), "").partition("periflow_otel: ")[2]
