"""Where the page of a run is: a line of text in its folder, as long as the agent that serves it lives."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.journal.files import read_end, replace_file
from periflow_otel.journal.folders import PAGE_FILE

_MAX_URL_BYTES: Final = 300


def announce_page(folder: Path, url: str) -> None:
    """Say where the page of the run in a folder is; a disk that takes nothing keeps others from finding it."""
    with suppress(OSError):
        replace_file(folder / PAGE_FILE, url.encode())


def forget_page(folder: Path) -> None:
    """Say it no more."""
    with suppress(OSError):
        (folder / PAGE_FILE).unlink()


def page_url(folder: Path) -> str | None:
    """Return where the page of the run in a folder is; None if none is served."""
    try:
        url = read_end(folder / PAGE_FILE, _MAX_URL_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None
    return url if url.startswith("http://") else None
