"""``periflow-otel doctor``: what goes where, whether it gets there, and how the runs on this node are."""

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.cli.findings import Finding
from periflow_otel.cli.runs import examine_runs
from periflow_otel.config.endpoints import OtlpSettings
from periflow_otel.config.environ import Environ
from periflow_otel.config.export import ExportSettings
from periflow_otel.config.paths import fallback_state_dir, find_state_dirs
from periflow_otel.config.run import RunSettings
from periflow_otel.errors import PeriFlowError
from periflow_otel.journal.places import judge, own_place
from periflow_otel.ranks import describe, find_identity, require_cloud

_OTHER_PROTOCOL: Final = re.compile("gRPC UNAVAILABLE|Connection reset|closed connection|BadStatusLine")
"""What a request meets at a port for another protocol."""


def show_findings() -> int:
    """Say what the doctor has found, faults with an exclamation mark.

    Returns:
        0 if all is well, 1 if something is not.
    """
    faults = 0
    for finding in examine(os.environ):
        print(f"{'!' if finding.is_fault else ' '} {finding.subject:<10} {finding.text}", flush=True)
        faults += finding.is_fault
    print(f"{faults} of these need{'s' if faults == 1 else ''} attention (!)" if faults else "all is well")
    return int(faults > 0)


def examine(environ: Environ) -> Iterator[Finding]:
    """Look at the settings, the destinations, the folders and the runs, one after the other."""
    try:
        settings, export = RunSettings.from_environ(environ), ExportSettings.from_environ(environ)
        yield from _who(environ, settings)
    except PeriFlowError as error:
        yield Finding("settings", str(error), is_fault=True)
        return
    yield from _state_folders(settings)
    if settings.is_disabled:
        yield Finding("exporters", "everything is off, as OTEL_SDK_DISABLED is true")
    else:
        yield from _destinations(export)
    yield from examine_runs(find_state_dirs(environ), export)


def _who(environ: Environ, settings: RunSettings) -> Iterator[Finding]:
    identity = find_identity(environ)
    yield Finding("mode", f"cloud, as {names.PERIFLOW_ENABLED} is 1" if settings.is_cloud else "local")
    if settings.is_cloud:
        require_cloud(environ)
    yield Finding("process", describe(identity))
    yield Finding("run id", settings.run_id or identity.run_id or "made up by each run")


def _state_folders(settings: RunSettings) -> Iterator[Finding]:
    """Try the folders in the order in which a run does, up to the one that it would take."""
    for candidate in (settings.state_dir, fallback_state_dir()):
        finding = _state_folder(candidate)
        yield finding
        if not finding.is_fault:
            return


def _state_folder(candidate: Path) -> Finding:
    place = candidate
    try:
        place = own_place(candidate)
        judge(place)
        free = shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free
    except OSError as error:
        reason = error.strerror or error
        return Finding("journals", f"{place} cannot hold them ({reason}); set {names.STATE_DIR}", is_fault=True)
    return Finding("journals", f"{place}, {free >> 20} MiB free")


def _destinations(export: ExportSettings) -> Iterator[Finding]:
    if not export.is_cloud:
        yield Finding("files", f"the metric log{', and OTLP JSON files beside it' if export.files else ''}")
    receivers = [otlp for signal, otlp in export.otlp.items() if signal in export.exporters]
    with ThreadPoolExecutor() as pool:  # one that does not answer takes ten seconds
        yield from pool.map(_try, receivers)
    if not receivers:
        yield Finding("OTLP", "nowhere; OTEL_EXPORTER_OTLP_ENDPOINT names a receiver")
    for name in dict.fromkeys(export.others()):
        yield Finding(name, "an exporter of another package; not tried")
    if export.serves_prometheus or export.serves_page:
        yield _endpoint(export)


def _try(otlp: OtlpSettings) -> Finding:
    """Send a request with nothing in it."""
    from periflow_otel.exporters import Verdict  # noqa: PLC0415  # as above
    from periflow_otel.exporters.otlp import OtlpExporter  # noqa: PLC0415  # takes a while

    where = f"{otlp.place} ({otlp.protocol})"
    exporter = OtlpExporter(otlp)
    started_s = time.monotonic()
    answer = exporter.probe()
    took_ms = (time.monotonic() - started_s) * 1000
    exporter.close()
    if answer.verdict is Verdict.TAKEN:
        return Finding(otlp.signal, f"{where} accepts them, in {took_ms:.0f} ms")
    text = f"{where} does not take them: {answer.message}"
    if _OTHER_PROTOCOL.search(text):
        text += "; is that its port for OTEL_EXPORTER_OTLP_PROTOCOL? Usual are 4317 for grpc and 4318 for http/protobuf"
    return Finding(otlp.signal, text, is_fault=True)


def _endpoint(export: ExportSettings) -> Finding:
    host, port = export.prometheus_host, export.prometheus_port
    pages = [path for path, is_on in (("/run", export.serves_page), ("/metrics", export.serves_prometheus)) if is_on]
    text = f"http://{host}:{port or '(any)'}{' and '.join(pages)} while a run goes on"
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return Finding("page", f"{text}: {error.strerror}", is_fault=True)
        text += "; that port is taken now, so a run would take the next free port"
    return Finding("page", text)
