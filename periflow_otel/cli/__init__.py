"""The command ``periflow-otel``."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from periflow_otel import names
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.control import ANY_STEP, Request
from periflow_otel.journal.emergency import LiveRun, live_runs, request_save
from periflow_otel.logs import limit_repeats
from periflow_otel.ranks import describe, find_identity
from periflow_otel.settings.paths import find_state_dirs

REPLAY_TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    _set_up_streams()
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    limit_repeats()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC would write on stderr is in the answers too
    try:
        status = int(options.run(options))
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="periflow-otel", description="Look after what periflow_otel has recorded on this machine."
    )
    parser.add_argument("--version", action="version", version=f"periflow-otel {names.VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "replay",
        help="deliver what earlier runs have left in their journals",
        description="Deliver what earlier runs have left in their journals, to where the environment variables say. "
        "Nothing is delivered twice, and a run whose agent is at work is left to it. A file of OTLP JSON, as local "
        "mode writes it, is sent from where an earlier replay came to.",
    )
    command.add_argument(
        "places", nargs="*", type=Path, metavar="FOLDER|FILE",
        help="folder of a run, or file of OTLP JSON; default: all that runs on this machine have left in journals",
    )  # fmt: skip
    command.add_argument("--to", metavar="URL", help="OTLP receiver, in place of OTEL_EXPORTER_OTLP_ENDPOINT")
    command.add_argument("--anew", action="store_true", help="send files from their start, whatever was sent before")
    command.add_argument(
        "--timeout", type=float, default=REPLAY_TIMEOUT_S, metavar="S", help="seconds to try, per run (default 60)"
    )
    command.set_defaults(run=_replay)
    command = commands.add_parser(
        "emergency-save",
        help="ask a run on this node to save a checkpoint now",
        description="Ask all ranks of a run on this node to save: pf.is_emergency_save() is true until they have. "
        "A run over several nodes is asked on each, best for the same --step.",
    )
    command.add_argument("--run-id", metavar="ID", help="which run; needed where several are going on")
    command.add_argument("--step", type=int, metavar="N", help="at which step (default: as soon as possible)")
    command.set_defaults(run=lambda options: emergency_save(options.run_id, options.step))
    command = commands.add_parser(
        "doctor",
        help="show what goes where, try it, and tell how the runs on this node are",
        description="Show what the environment variables make of a run started here, send each OTLP receiver a request "
        "with nothing in it, and tell of every run on this node that has not delivered all. Changes nothing.",
    )
    command.set_defaults(run=lambda _: show_findings())
    command = commands.add_parser(
        "report",
        help="write one HTML file on one run or several: curves, speed, ranks, trouble",
        description="Write one HTML file that shows runs from the files that local mode left: it needs no network. "
        "Several runs are drawn over one another, with their configuration side by side.",
    )
    command.add_argument(
        "sources", nargs="*", metavar="RUN|FILE",
        help="id or name of a run, a metric log, an OTLP JSON file, or a folder (default: this one)",
    )  # fmt: skip
    command.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="OUT", help="(report.html)")
    command.add_argument("--open", action="store_true", help="show it in a browser")
    command.set_defaults(run=lambda options: report(options.sources, options.output, opens=options.open))
    command = commands.add_parser("runs", help="list the runs of this machine and this folder, the latest first")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_runs)
    command = commands.add_parser(
        "status",
        help="show how a run is: pace, curves, ranks side by side",
        description="Show how a run is, while it lasts and afterwards: how far, how fast, curves, ranks side by side. "
        "The exit status is 1 if it has failed or was killed.",
    )
    command.add_argument(
        "run_id",
        nargs="?",
        metavar="RUN",
        help="id or name, of this machine or folder (default: the latest that goes on)",
    )
    command.add_argument("--watch", action="store_true", help="show it again every 2 seconds, until it is over")
    command.add_argument("--json", action="store_true", help="as JSON, which docs/view.md describes")
    command.set_defaults(run=_status)
    command = commands.add_parser(
        "stacks",
        help="show what the ranks of a run on this node are doing: their Python stacks",
        description="Ask all ranks of a run on this node for their Python stacks, even where they hang in C, and show "
        "equal ones together, those that hold up the others first. Training goes on meanwhile.",
    )
    command.add_argument("run_id", nargs="?", metavar="RUN", help="which (default: the latest that goes on)")
    command.add_argument("--json", action="store_true", help="as JSON, a list of groups of ranks")
    command.set_defaults(run=_stacks)
    command = commands.add_parser(
        "tail",
        help="print what a run gives to pf.metric, as it does",
        description="Print what a run that goes on gives to pf.metric, until it is over.",
    )
    command.add_argument("run_id", nargs="?", metavar="RUN", help="which (default: the latest that goes on)")
    command.add_argument("--json", action="store_true", help="as JSON, an object a line")
    command.set_defaults(run=_tail)
    command = commands.add_parser(
        "export",
        help="write every value of every metric as a row, with its step, time and rank",
        description="Write every value that runs gave to pf.metric as a row: run, attempt, rank, step, time (seconds "
        "since 1970), metric, value. pandas.read_csv and pandas.read_parquet read it.",
    )
    command.add_argument(
        "sources", nargs="*", metavar="RUN|FILE",
        help="id or name of a run, a metric log, an OTLP JSON file, or a folder (default: this one)",
    )  # fmt: skip
    command.add_argument("-o", "--output", type=Path, metavar="OUT", help="file to write (default: stdout)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--csv", dest="kind", action="store_const", const="csv", help="(default)")
    kind.add_argument("--parquet", dest="kind", action="store_const", const="parquet", help="needs pyarrow")
    command.set_defaults(run=_export)
    command = commands.add_parser("ranks", help="show who this process is among the ranks of a run, and what said so")
    command.set_defaults(run=lambda _: show_identity())
    return parser


def _replay(options: argparse.Namespace) -> int:
    from periflow_otel.cli.replay import replay  # noqa: PLC0415  # takes a while

    environ = os.environ | ({"OTEL_EXPORTER_OTLP_ENDPOINT": options.to} if options.to else {})
    return replay(options.places, environ, options.timeout, anew=options.anew)


def report(sources: Sequence[str], out: Path, *, opens: bool) -> int:
    """Write a report on runs; see :func:`periflow_otel.cli.reports.write_report`."""
    from periflow_otel.cli.reports import write_report  # noqa: PLC0415  # takes a while

    return write_report(sources, out, opens=opens)


def _runs(options: argparse.Namespace) -> int:
    from periflow_otel.cli.status import show_runs  # noqa: PLC0415  # takes a while

    return show_runs(is_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from periflow_otel.cli.status import show_status  # noqa: PLC0415  # takes a while

    return show_status(options.run_id, is_watched=options.watch, is_json=options.json)


def _stacks(options: argparse.Namespace) -> int:
    from periflow_otel.cli.stacks import show_stacks  # noqa: PLC0415  # takes a while

    return show_stacks(options.run_id, is_json=options.json)


def _tail(options: argparse.Namespace) -> int:
    from periflow_otel.cli.tail import tail  # noqa: PLC0415  # takes a while

    return tail(options.run_id, is_json=options.json)


def _export(options: argparse.Namespace) -> int:
    from periflow_otel.cli.export import export  # noqa: PLC0415  # takes a while

    is_named_so = options.output is not None and options.output.suffix == ".parquet"
    is_parquet = is_named_so if options.kind is None else options.kind == "parquet"
    return export(options.sources, options.output, is_parquet=is_parquet)


def emergency_save(run_id: str | None, step: int | None) -> int:
    """Ask a run on this node to save.

    Args:
        run_id: Which run. Default: the only one that is going on.
        step: When. Default: as soon as all its ranks can at the same step.

    Returns:
        0 if its ranks were asked, 1 if there is no such run, or several.
    """
    runs = [each for state_dir in find_state_dirs(os.environ) for each in live_runs(state_dir)]
    found = [each for each in runs if run_id in (None, each.run_id)]
    if len(found) != 1:
        print(f"periflow-otel: {_which(found, run_id)}", file=sys.stderr)
        return 1
    try:
        asked = request_save(found[0].folder, step)
    except (OSError, ValueError) as error:
        print(f"periflow-otel: {error}", file=sys.stderr)
        return 1
    ranks = f"{asked.ranks} rank{'' if asked.ranks == 1 else 's'} of run {found[0].run_id}"
    print(f"{ranks} will save {_when(asked.request)}{'' if asked.is_new else ', as asked before'}")
    return 0


def _which(found: Sequence[LiveRun], run_id: str | None) -> str:
    if found:
        return f"several runs are going on here; give one as --run-id: {', '.join(each.run_id for each in found)}"
    return f"no run{'' if run_id is None else f' {run_id}'} is going on here"


def _when(request: Request) -> str:
    if request.step != ANY_STEP:
        return f"at step {request.step}"
    return f"at step {request.not_before}" if request.not_before else "at once"


def show_findings() -> int:
    """Say what the doctor has found, faults with an exclamation mark.

    Returns:
        0 if all is well, 1 if something is not.
    """
    from periflow_otel.cli.doctor import examine  # noqa: PLC0415  # takes a while

    faults = 0
    for finding in examine(os.environ):
        print(f"{'!' if finding.is_fault else ' '} {finding.subject:<10} {finding.text}", flush=True)
        faults += finding.is_fault
    print(f"{faults} of these need{'s' if faults == 1 else ''} attention (!)" if faults else "all is well")
    return int(faults > 0)


def show_identity() -> int:
    """Say who a training process in this place would be."""
    identity = find_identity(os.environ)
    print(describe(identity))
    print(f"run id: {os.environ.get(names.RUN_ID_VAR) or identity.run_id or 'made up by each run'}")
    return 0
