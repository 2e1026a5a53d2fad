"""What PyInstaller asks a package: where its hooks are. They name modules that are imported where they are used."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folders of hooks."""
    return [str(Path(__file__).parent)]
