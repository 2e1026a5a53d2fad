"""``periflow-otel emergency-save``: ask a run on this node to save a checkpoint."""

import os
import sys
from collections.abc import Sequence

from periflow_otel.config.paths import find_state_dirs
from periflow_otel.journal.control import ANY_STEP, Request
from periflow_otel.journal.emergency import LiveRun, live_runs, request_save


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
