"""The command ``periflow-otel``."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from periflow_otel.config import ExportSettings, find_state_dir
from periflow_otel.errors import ConfigurationError
from periflow_otel.logs import keep_quiet

REPLAY_TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    keep_quiet()
    try:
        return replay(options.folders, options.timeout)
    except ConfigurationError as error:
        print(f"periflow-otel: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="periflow-otel", description="Look after what periflow_otel has recorded on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "replay",
        help="deliver what earlier runs have left in their journals",
        description="Deliver what earlier runs have left in their journals, to where the environment variables say. "
        "Nothing is delivered twice, and a run whose agent is at work is left to it.",
    )
    command.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="folder of a run; default: all of this machine"
    )
    command.add_argument(
        "--timeout", type=float, default=REPLAY_TIMEOUT_S, metavar="S", help="seconds to try, per run (default 60)"
    )
    return parser


def replay(folders: Sequence[Path], timeout_s: float) -> int:
    """Deliver what runs have left behind, and say of each how it went.

    Args:
        folders: Folders of runs; none: all runs of this machine.
        timeout_s: Seconds to try, per run.

    Returns:
        0 if nothing is left, 1 if something is.
    """
    from periflow_otel.agent.leftovers import deliver_leftover, leftovers  # noqa: PLC0415  # takes a while

    settings = ExportSettings.from_environ(os.environ)
    status = 0
    for folder in folders or leftovers(find_state_dir(os.environ)):
        try:
            is_delivered = deliver_leftover(folder, settings, timeout_s)
        except OSError as error:
            print(f"{folder}: {error.strerror}", file=sys.stderr)
            status = 1
            continue
        print(f"{folder}: {_OUTCOMES[is_delivered]}")
        status |= not is_delivered
    return status


_OUTCOMES = {
    True: "delivered",
    False: "not everything could be delivered; the rest stays there",
    None: "left alone, its agent is at work",
}
