"""The commands of ``periflow-otel`` and what they are told."""

import argparse
from pathlib import Path
from typing import Any

from periflow_otel import names

REPLAY_TIMEOUT_S = 60.0
TAIL_LINES = 10
_RUN = "id, name or file of a run of this machine or folder; a part of an id will do"
_SOURCE = "id or name of a run, a metric log, an OTLP JSON file, or a folder (default: this one)"


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs, but not examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    whole = argparse.ArgumentParser(
        prog="periflow-otel",
        formatter_class=_Formatter,
        description="See what periflow_otel has recorded on this machine, and look after it.",
        epilog="periflow-otel COMMAND --help says more, with examples.",
    )
    whole.add_argument("--version", action="version", version=f"periflow-otel {names.VERSION}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_runs, _add_status, _add_tail, _add_report, _add_export, _add_stacks, _add_save, _add_doctor, _add_replay,
        _add_ranks,
    ):  # fmt: skip
        add(commands)
    return whole


def _command(commands: Any, name: str, summary: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: Where.
        name: What it is called.
        summary: What it does, for the list of all.
        description: What it does, in sentences.
        examples: Pairs of what follows ``periflow-otel``, and what that is good for, with two spaces between.
    """
    pairs = [example.partition("  ")[::2] for example in examples]
    width = max(len(arguments) for arguments, _ in pairs)
    lines = [f"  periflow-otel {arguments:{width}}  {use}".rstrip() for arguments, use in pairs]
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog="\n".join(["examples:", *lines]), formatter_class=_Formatter
    )
    return added


def _add_runs(commands: Any) -> None:
    command = _command(
        commands, "runs", "list the runs of this machine and this folder",
        "List the runs of this machine and those whose files are in this folder: those that go on, then the latest.",
        "runs", "runs --json  with the folders and files of each",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="as JSON")


def _add_status(commands: Any) -> None:
    command = _command(
        commands, "status", "show how a run is: pace, trouble, curves, ranks side by side",
        "Show how a run is, while it lasts and afterwards: how far, how fast, what stands out, curves, ranks side by "
        "side. The exit status is 1 if it has failed or was killed.",
        "status  the latest that goes on, else the latest",
        "status baseline --watch  until it is over, or Ctrl-C",
        "status train.log  of files, also from another machine",
        "status --json | jq .findings",
    )  # fmt: skip
    command.add_argument("wanted", nargs="?", metavar="RUN|FILE", help=_RUN)
    command.add_argument("--watch", action="store_true", help="show it again every 2 seconds, until it is over")
    command.add_argument("--json", action="store_true", help="as JSON, which docs/view.md describes")


def _add_tail(commands: Any) -> None:
    command = _command(
        commands, "tail", "print what a run gives to pf.metric, as it does",
        "Print what a run that goes on gives to pf.metric, and what it logs where log records are recorded, until it "
        "is over.",
        "tail  the latest that goes on",
        "tail baseline -n 100",
        "tail --json | jq .values.loss",
    )  # fmt: skip
    command.add_argument("wanted", nargs="?", metavar="RUN|FILE", help=_RUN)
    command.add_argument(
        "-n", "--lines", type=int, default=TAIL_LINES, metavar="N",
        help=f"begin with the last N of those that are still in the journal (default {TAIL_LINES})",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="as JSON, an object a line")


def _add_report(commands: Any) -> None:
    command = _command(
        commands, "report", "write one HTML file on one run or several: curves, speed, ranks, trouble",
        "Write one HTML file that shows runs from the files that local mode left: it needs no network. Several runs "
        "are drawn over one another, with their configuration side by side.",
        "report  all runs of this folder, as report.html",
        "report train.log --open  in a browser",
        "report baseline tuned -o both.html  one over the other",
    )  # fmt: skip
    command.add_argument("sources", nargs="*", metavar="RUN|FILE", help=_SOURCE)
    command.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="OUT", help="(report.html)")
    command.add_argument("--open", action="store_true", help="show it in a browser")


def _add_export(commands: Any) -> None:
    command = _command(
        commands, "export", "write every value of every metric as a row, for pandas and others",
        "Write every value that runs gave to pf.metric as a row: run, attempt, rank, step, time (seconds since 1970), "
        "metric, value. pandas.read_csv and pandas.read_parquet read it.",
        "export train.log > values.csv",
        "export baseline tuned -o values.parquet  needs pyarrow",
    )  # fmt: skip
    command.add_argument("sources", nargs="*", metavar="RUN|FILE", help=_SOURCE)
    command.add_argument("-o", "--output", type=Path, metavar="OUT", help="file to write (default: stdout)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--csv", dest="kind", action="store_const", const="csv", help="(default)")
    kind.add_argument(
        "--parquet", dest="kind", action="store_const", const="parquet",
        help="needs pyarrow (default where OUT ends in .parquet)",
    )  # fmt: skip


def _add_stacks(commands: Any) -> None:
    command = _command(
        commands, "stacks", "show what the ranks of a run on this node are doing: their Python stacks",
        "Ask all ranks of a run on this node for their Python stacks, even where they hang in C, and show equal ones "
        "together, those that hold up the others first. Training goes on meanwhile.",
        "stacks  of the latest that goes on",
        "stacks baseline --json",
    )  # fmt: skip
    command.add_argument("wanted", nargs="?", metavar="RUN", help=_RUN)
    command.add_argument("--json", action="store_true", help="as JSON, a list of groups of ranks")


def _add_save(commands: Any) -> None:
    command = _command(
        commands, "emergency-save", "ask a run on this node to save a checkpoint now",
        "Ask all ranks of a run on this node to save: pf.is_emergency_save() is true until they have. A run over "
        "several nodes is asked on each, best for the same --step.",
        "emergency-save", "emergency-save --run-id 20261126-074520-97b8d3 --step 1200",
    )  # fmt: skip
    command.add_argument("--run-id", metavar="ID", help="which run; needed where several are going on")
    command.add_argument("--step", type=int, metavar="N", help="at which step (default: as soon as possible)")


def _add_doctor(commands: Any) -> None:
    _command(
        commands, "doctor", "show what goes where, try it, and tell how the runs on this node are",
        "Show what the environment variables make of a run started here, send each OTLP receiver a request with "
        "nothing in it, and tell of every run on this node that has not delivered all. Changes nothing. The exit "
        "status is 1 if something needs attention.",
        "doctor", "doctor && torchrun train.py",
    )  # fmt: skip


def _add_replay(commands: Any) -> None:
    command = _command(
        commands, "replay", "deliver what earlier runs have left, or send files of local mode to a receiver",
        "Deliver what earlier runs have left in their journals, to where the environment variables say. Nothing is "
        "delivered twice, and a run whose agent is at work is left to it. Files of OTLP JSON, as local mode writes "
        "them, are sent from where an earlier replay came to.",
        "replay  all that is left on this machine",
        "replay train.log --to http://collector:4318  the files beside it",
        "replay train.traces.jsonl.gz --to http://collector:4318",
    )  # fmt: skip
    command.add_argument(
        "sources", nargs="*", metavar="RUN|FILE|FOLDER",
        help="run or files, as for report; or the folder of a run with journals "
        "(default: all that runs on this machine have left in journals)",
    )  # fmt: skip
    command.add_argument("--to", metavar="URL", help="OTLP receiver, in place of OTEL_EXPORTER_OTLP_ENDPOINT")
    command.add_argument("--anew", action="store_true", help="send files from their start, whatever was sent before")
    command.add_argument(
        "--timeout", type=float, default=REPLAY_TIMEOUT_S, metavar="S", help="seconds to try, per run (default 60)"
    )


def _add_ranks(commands: Any) -> None:
    _command(
        commands, "ranks", "show who this process is among the ranks of a run, and what said so",
        "Show who a training process would be that is started here as this one is, and which variables said so.",
        "ranks  in front of it whatever starts the script: srun, mpirun, torchrun --no-python",
    )  # fmt: skip
