"""The command ``periflow-otel``."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.cli.arguments import parser
from periflow_otel.errors import ConfigurationError
from periflow_otel.logs import limit_repeats
from periflow_otel.ranks import describe, find_identity


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    _set_up_streams()
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    limit_repeats()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC would write on stderr is in the answers too
    try:
        status = _COMMANDS[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ConfigurationError as error:
        print(f"periflow-otel: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be read or written, a full disk
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"periflow-otel: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    return status


def _set_up_streams() -> None:
    """Have somewhere to write to, where anything can be written: names that are no text, letters a terminal lacks."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


# What a command needs is imported when it is called: it takes a while.


def _runs(options: argparse.Namespace) -> int:
    from periflow_otel.cli.status import show_runs  # noqa: PLC0415

    return show_runs(is_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from periflow_otel.cli.status import show_status  # noqa: PLC0415

    return show_status(options.wanted, is_watched=options.watch, is_json=options.json)


def _tail(options: argparse.Namespace) -> int:
    from periflow_otel.cli.tail import tail  # noqa: PLC0415

    return tail(options.wanted, options.lines, is_json=options.json)


def _report(options: argparse.Namespace) -> int:
    from periflow_otel.cli.reports import write_report  # noqa: PLC0415

    return write_report(options.sources, options.output, opens=options.open)


def _export(options: argparse.Namespace) -> int:
    from periflow_otel.cli.export import export  # noqa: PLC0415

    is_named_so = options.output is not None and options.output.suffix == ".parquet"
    is_parquet = is_named_so if options.kind is None else options.kind == "parquet"
    return export(options.sources, options.output, is_parquet=is_parquet)


def _stacks(options: argparse.Namespace) -> int:
    from periflow_otel.cli.stacks import show_stacks  # noqa: PLC0415

    return show_stacks(options.wanted, is_json=options.json)


def _save(options: argparse.Namespace) -> int:
    from periflow_otel.cli.emergency import emergency_save  # noqa: PLC0415

    return emergency_save(options.run_id, options.step)


def _doctor(_options: argparse.Namespace) -> int:
    from periflow_otel.cli.doctor import show_findings  # noqa: PLC0415

    return show_findings()


def _replay(options: argparse.Namespace) -> int:
    from periflow_otel.cli.replay import replay  # noqa: PLC0415

    environ = os.environ | ({"OTEL_EXPORTER_OTLP_ENDPOINT": options.to} if options.to else {})
    return replay(options.sources, environ, options.timeout, anew=options.anew)


def _ranks(_options: argparse.Namespace) -> int:
    identity = find_identity(os.environ)
    print(describe(identity))
    print(f"run id: {os.environ.get(names.RUN_ID_VAR) or identity.run_id or 'made up by each run'}")
    return 0


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "runs": _runs,
    "status": _status,
    "tail": _tail,
    "report": _report,
    "export": _export,
    "stacks": _stacks,
    "emergency-save": _save,
    "doctor": _doctor,
    "replay": _replay,
    "ranks": _ranks,
}
