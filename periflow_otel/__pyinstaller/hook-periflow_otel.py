"""Modules that a frozen program needs, though nothing in the source imports them by name."""

from PyInstaller.utils.hooks import collect_submodules  # type: ignore[import-untyped]  # it is there when it asks

hiddenimports = [
    *collect_submodules("periflow_otel.agent"),
    *collect_submodules("periflow_otel.exporters"),
]
