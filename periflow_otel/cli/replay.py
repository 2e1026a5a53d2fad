"""``periflow-otel replay``: deliver what runs have left, in journals or in files."""

import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from periflow_otel.agent.dead_letters import all_dead_letters
from periflow_otel.agent.leftovers import deliver_leftover, leftovers
from periflow_otel.agent.resend import folders_with_letters, resend
from periflow_otel.agent.resend_files import Sent, resend_file
from periflow_otel.cli.sources import find_left, find_source
from periflow_otel.config.environ import Environ
from periflow_otel.config.export import ExportSettings
from periflow_otel.config.paths import find_state_dirs
from periflow_otel.journal.folders import is_readable, journal_folders
from periflow_otel.journal.reader import unreadable_journals
from periflow_otel.recordings import files_with, find_files
from periflow_otel.terminal import one_line

_BAR_CHARS: Final = 30


def replay(sources: Sequence[str], environ: Environ, timeout_s: float, *, anew: bool = False) -> int:
    """Deliver what runs have left behind, and say of each how it went.

    Args:
        sources: Folders of runs, files of OTLP JSON, or what the commands take that show runs; none: all that runs of
            this machine have left in journals.
        environ: Where to deliver, and where runs are.
        timeout_s: Seconds to try, per run; for a file, while nothing passes.
        anew: Send files from their start.

    Returns:
        0 if nothing is left, 1 if something is.

    Raises:
        ConfigurationError: A variable has a value that cannot be used, a source is nothing that could be sent, or no
            receiver is set for a file.
    """
    settings = ExportSettings.from_environ(environ)
    state_dirs = find_state_dirs(environ)
    places = [place for source in sources for place in _places(source)]
    if not sources:
        places = list(dict.fromkeys((*leftovers(state_dirs), *folders_with_letters(state_dirs))))
    if not places:
        print("nothing to deliver: no run has left anything here")
    is_done = [
        _replay_file(place, settings, state_dirs[0], timeout_s, anew=anew)
        if os.path.isfile(place)  # noqa: PTH113  # Path raises where it may not look
        else _replay_folder(place, settings, timeout_s)
        for place in places
    ]
    return int(not all(is_done))


def _places(source: str) -> list[Path]:
    """Return what a source stands for: a folder with journals, or files of OTLP JSON."""
    place = Path(source)
    if os.path.isfile(place):  # noqa: PTH113  # as above
        return files_with(place)
    if os.path.isdir(place):  # noqa: PTH112  # as above
        return [place] if _has_something(place) else find_files([place]) or [place]
    run = find_left(source)
    return [run.folder] if run and _has_something(run.folder) else find_source(source).files


def _has_something(folder: Path) -> bool:
    """Tell whether a folder holds journals, as far as it can be looked at, or what was set aside."""
    return not is_readable(folder) or any(journal_folders(folder)) or any(all_dead_letters(folder))


def _replay_folder(folder: Path, settings: ExportSettings, timeout_s: float) -> bool:
    """Deliver what is in the folder of a run; return whether nothing is left."""
    has_journals = not is_readable(folder) or any(journal_folders(folder))
    if not has_journals and not any(all_dead_letters(folder)):
        print(
            f"{folder}: holds neither journals nor OTLP JSON files; give a folder such as STATE_DIR/RUN_ID/HOST_NAME",
            file=sys.stderr,
        )
        return False
    try:
        is_delivered = deliver_leftover(folder, settings, timeout_s) if has_journals else True
        is_resent, resent = _resend(folder, settings)
    except OSError as error:
        print(f"{folder}: {error.strerror}", file=sys.stderr)
        return False
    print(f"{folder}: {_OUTCOMES[is_delivered]}{_unreadable(folder)}{resent}")
    return bool(is_delivered and is_resent)


def _resend(folder: Path, settings: ExportSettings) -> tuple[bool, str]:
    """Send again what is set aside; return whether nothing is left of it, and what to say."""
    resent = resend(folder, settings)
    said = f"; of what was set aside, {resent.sent} sent again" if resent.sent or resent.left else ""
    if resent.left:
        said += f", {resent.left} still not taken ({resent.message})"
    return not resent.left, said


def _unreadable(folder: Path) -> str:
    journals = unreadable_journals(folder)
    return f"; cannot be read: {', '.join(each.name for each in journals)}" if journals else ""


_OUTCOMES = {
    True: "delivered",
    False: "not everything could be delivered; the rest stays there",
    None: "left alone: the run is going on, or its agent is at work",
}


def _replay_file(path: Path, settings: ExportSettings, state_dir: Path, timeout_s: float, *, anew: bool) -> bool:
    """Send a file; return whether a receiver has all of it."""
    try:
        with closing(_Bar(path)) as bar:
            sent = resend_file(path, settings, state_dir, timeout_s, bar, anew=anew)
    except KeyboardInterrupt:
        print(f"{path}: interrupted; the same command goes on there", file=sys.stderr)
        raise
    except (OSError, EOFError, zlib.error) as error:  # the latter two of a compressed file that is damaged
        print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return False
    if not sent.is_otlp:
        print(f"{path}: no line of it is OTLP JSON", file=sys.stderr)
        return False
    print(f"{path}: {_tell(sent)}")
    return sent.is_complete


class _Bar:
    """How far a file is sent, in one line of a terminal."""

    def __init__(self, path: Path) -> None:
        self._name = one_line(path.name)
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, done_bytes: int, size_bytes: int) -> None:
        done = "#" * (_BAR_CHARS * done_bytes // size_bytes)
        self._show(f"[{done:{_BAR_CHARS}}] {100 * done_bytes // size_bytes:3} %  {self._name}")

    def close(self) -> None:
        """Make room for what is said next."""
        self._show("")

    def _show(self, text: str) -> None:
        if self._is_shown:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)


def _tell(sent: Sent) -> str:
    lines, refused, strange = (
        getattr(sent.now, name) - getattr(sent.before, name) for name in ("lines", "refused", "strange")
    )
    if sent.is_complete and sent.before.offset >= sent.size_bytes:
        return "nothing new: all of it was sent before; --anew sends it again"
    texts = [f"{lines} line{'' if lines == 1 else 's'} sent"]
    if sent.before.offset:
        texts.append(f"{sent.before.lines} before; --anew sends all again")
    if refused:
        texts.append(f"{refused} refused ({sent.message})")
    if strange:
        texts.append(f"{strange} left out, which are no OTLP JSON")
    if sent.now.offset < sent.size_bytes:
        texts.append(f"{sent.now.offset} of {sent.size_bytes} bytes are done with; the same command goes on there")
    return "; ".join(texts)
