"""What a rank does, as far as its Python stacks tell. Pure."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Final

from periflow_otel.translate.stragglers.stacks import Frame, Stack, calls


class Activity(Enum):
    """What a rank does while no step ends."""

    STUCK = "stuck"
    WAITS = "waits for other ranks"
    MAY_WAIT = "may wait for other ranks"
    """In the backward pass, say, whose collectives have no Python frames."""
    WORKS = "works"
    EVALUATES = "evaluates"
    SAVES = "saves"
    COMPILES = "compiles"
    IDLES = "idles"
    """Nobody has asked it to do anything: a notebook between two cells."""
    IS_DEBUGGED = "is debugged"
    IS_STOPPED = "is stopped"
    SILENT = "gives no answer"


HARMLESS: Final = frozenset({Activity.IDLES, Activity.IS_DEBUGGED, Activity.IS_STOPPED})
"""What is never worth a word: somebody wants it so."""
LONG: Final = frozenset({Activity.WORKS, Activity.EVALUATES, Activity.SAVES, Activity.COMPILES})
"""What takes long by nature; and so may waiting for ranks of other nodes, which do one of these perhaps."""

_COLLECTIVES: Final = re.compile(
    r"(monitored_)?barrier|(all_?)?(reduce|gather|to_?all)(_.*|v)?|reduce_scatter.*|broadcast(_.*)?|scatter(_.*)?|recv.*"
    r"|send.*|wait_for_everyone|sync_global_devices|process_allgather|init_process_group|rendezvous|synchronize_sparse"
)
_COMMUNICATION: Final = re.compile(
    r"[/\\](torch[/\\]distributed[/\\](distributed_c10d|c10d_logger|_functional_collectives|rendezvous|nn)"
    r"|horovod|deepspeed[/\\]comm|accelerate|mpi4py|jax[/\\]experimental[/\\]multihost_utils)"
)
_MAY_WAIT: Final = re.compile(r"_engine_run_backward|run_backward|backward|synchronize|_sync_.*")
_MAY_WAIT_ITSELF: Final = re.compile(r"synchronize|_sync_.*")
"""In code of the user's own. A function called ``backward`` is a part of the backward pass there, and computes."""
_DEBUGGERS: Final = re.compile(r"[/\\](pdb|bdb|ipdb|pudb|debugpy|pydevd[^/\\]*|_pydevd_bundle)([/\\].*|\.py)$")
_NOTEBOOKS: Final = re.compile(r"[/\\](ipykernel|ipykernel_launcher\.py|IPython|_pyrepl)([/\\]|$)|[/\\]code\.py$")
_CELL: Final = re.compile(r"ipykernel_\d+|<ipython-input|^<stdin>|^<python-input")
_COMPILERS: Final = re.compile(
    r"[/\\](torch[/\\](_dynamo[/\\](?!eval_frame)|_inductor[/\\](?!output_code|utils)|utils[/\\]cpp_extension|jit"
    r"|_functorch[/\\]_aot_autograd[/\\](?!runtime_wrappers|utils))"
    r"|triton[/\\](compiler|backends|runtime[/\\](jit|autotuner))|jax[/\\]_src[/\\](compiler|pjit|interpreters)|numba[/\\]core)"
)
_EVALUATION: Final = re.compile(r"test|(.*_)?(eval|evaluate|evaluation|valid|validate|validation|predict)(_.*)?")
_SAVING: Final = re.compile(r"(.*_)?(save|saves|saving|checkpoint|upload|push)(_.*)?")
_TRAINING: Final = re.compile(r"(^|_)(train|training|fit|main)(_|$)")
"""What has this in its name may evaluate and save too, but is not known to do so now."""
_WORKING: Final = 4
"""So many different places in as many stacks or more, none of them most of the time, are work and no small loop."""


def activity_of(stacks: Sequence[Stack]) -> Activity:
    """Tell what a rank does, as far as that can be told without the others.

    Args:
        stacks: It gave one after another.
    """
    if not stacks:
        return Activity.SILENT
    return next((activity for activity, is_so in _SIGNS if is_so(stacks)), Activity.STUCK)


def may_wait(stack: Stack) -> bool:
    """Tell whether a rank is in a call that may wait for others, unless it computes."""
    inner = _inner(stack)
    is_so = any(_MAY_WAIT.fullmatch(frame.function) for frame in stack[:inner])
    return is_so or (inner < len(stack) and _MAY_WAIT_ITSELF.fullmatch(stack[inner].function) is not None)


def collective(stack: Stack) -> Frame | None:
    """Return the outermost call of a collective that the innermost code of the user's own has made."""
    inner = [frame for frame in stack[: _inner(stack)] if _COMMUNICATION.search(frame.file)]
    return next((frame for frame in reversed(inner) if _COLLECTIVES.fullmatch(frame.function)), None)


def _inner(stack: Stack) -> int:
    """Return how many calls of libraries are within the innermost one of the user's own code."""
    return next((number for number, frame in enumerate(stack) if not frame.is_of_library), len(stack))


def _is_debugged(stacks: Sequence[Stack]) -> bool:
    return any(_DEBUGGERS.search(frame.file) for frame in stacks[-1])


def _is_idle(stacks: Sequence[Stack]) -> bool:
    """Tell whether an interpreter waits for somebody to type."""
    files = [frame.file for frame in stacks[-1]]
    return not files or (any(map(_NOTEBOOKS.search, files)) and not any(map(_CELL.search, files)))


def _compiles(stacks: Sequence[Stack]) -> bool:
    return any(_COMPILERS.search(frame.file) for frame in stacks[-1])


def _works(stacks: Sequence[Stack]) -> bool:
    """Tell whether a rank comes about more than in a small loop."""
    counts = Counter(map(calls, stacks))
    return len(counts) >= _WORKING and 2 * max(counts.values()) <= len(stacks)


def _waits(stacks: Sequence[Stack]) -> bool:
    return collective(stacks[-1]) is not None


def _may_wait(stacks: Sequence[Stack]) -> bool:
    return may_wait(stacks[-1])


def _is_named(name: "re.Pattern[str]", stacks: Sequence[Stack]) -> bool:
    functions = [frame.function for frame in stacks[-1]]
    return any(name.fullmatch(function) and not _TRAINING.search(function) for function in functions)


_SIGNS: Final[tuple[tuple[Activity, Callable[[Sequence[Stack]], bool]], ...]] = (
    (Activity.IS_DEBUGGED, _is_debugged),
    (Activity.IDLES, _is_idle),
    (Activity.COMPILES, _compiles),
    (Activity.WORKS, _works),
    (Activity.WAITS, _waits),
    (Activity.EVALUATES, partial(_is_named, _EVALUATION)),
    (Activity.SAVES, partial(_is_named, _SAVING)),
    (Activity.MAY_WAIT, _may_wait),
)
"""How stacks tell what a rank does; the first that holds."""
