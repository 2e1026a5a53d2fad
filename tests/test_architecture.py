"""The list of modules is the architecture: what may import what, and what importing the package may load."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "periflow_otel"

LAYERS = [
    {"__pyinstaller"},
    {"names", "errors", "logs", "processes", "ids", "clock", "descriptors", "values", "web"},
    {"records", "conventions", "terminal"},
    {"identities", "run_config"},
    {"journal"},
    {"config"},
    {"ranks", "translate"},
    {"otlp", "view"},
    {"page", "recordings"},
    {"exporters"},
    {"agent"},
    {"training"},
    {"launcher", "startup"},
    {"handover"},
    {"run"},
    {"notebook"},
    {"__init__"},
    {"manager", "integrations", "cli", "testing"},
    {"__main__"},
]
"""From the bottom up. A module, or all modules of a folder, may import what stands below."""

FOREIGN = {
    "records": {"msgspec"},
    "processes": {"msgspec"},
    "values": {"msgspec"},
    "journal": {"msgspec"},
    "agent": {"msgspec"},
    "agent.machine": {"psutil", "pynvml"},
    "config.run": {"msgspec"},
    "translate": {"msgspec"},
    "otlp.from_json": {"google.protobuf", "opentelemetry.proto"},
    "otlp.json": {"msgspec"},
    "view": {"msgspec"},
    "page": {"msgspec"},
    "recordings": {"msgspec"},
    "exporters.live_page": {"msgspec"},
    "exporters.otlp": {"grpc", "opentelemetry.proto", "google.protobuf", "google.rpc"},
    "exporters.sdk": {"opentelemetry"},
    "exporters.prometheus": {"prometheus_client"},
    "cli.known_runs": {"msgspec"},
    "cli.sources": {"msgspec"},
    "cli.stacks": {"msgspec"},
    "cli.status": {"msgspec"},
    "cli.tail": {"msgspec"},
    "cli.export": {"pyarrow"},
    "training": {"msgspec"},
    "launcher": {"msgspec"},
    "training.context": {"opentelemetry.context", "opentelemetry.trace"},
}
"""What modules whose names begin so may import besides our own and the standard library; others may import nothing."""

DISTRIBUTIONS = {
    "msgspec": "msgspec",
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "opentelemetry.attributes": "opentelemetry-api",
    "opentelemetry.context": "opentelemetry-api",
    "opentelemetry.trace": "opentelemetry-api",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "prometheus_client": "prometheus-client",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "pynvml": "nvidia-ml-py",
}
"""Which package brings what is imported."""

GUESTS = {"integrations", "__pyinstaller"}
"""Loaded by other programs, which bring what they import."""

HEAVY = ("torch", "numpy", "opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf",
         "grpc", "requests", "urllib3", "prometheus_client", "asyncio", "psutil", "pynvml")  # fmt: skip
"""What a training process must not load because of telemetry."""


def _modules() -> dict[str, Path]:
    """Every module of the package by its name inside it, as ``exporters.otlp``; the root is ``__init__``."""
    folder = ROOT / PACKAGE
    paths = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


MODULES = _modules()


def _imports(name: str) -> Iterator[str]:
    """Full names of everything that a module imports anywhere in it, even late or for types only."""
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(name: str) -> set[str]:
    """Our own modules that a module imports."""
    found = set()
    for imported in _imports(name):
        if imported.split(".")[0] == PACKAGE:
            inside = imported.removeprefix(PACKAGE).removeprefix(".")
            # The last part may be a module, or something inside one.
            candidates = (inside, inside.rpartition(".")[0], "__init__")
            found.add(next(each for each in candidates if each in MODULES))
    return found


def _part(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _layer(name: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if _part(name) in parts)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_has_a_layer(name: str):
    """A new module is given its place in the table above."""
    assert any(_part(name) in parts for parts in LAYERS)


def test_the_document_shows_the_same_layers():
    """Its table has every module once, with those above that stand above here."""
    table = (ROOT / "docs/architecture.md").read_text("utf-8").partition("## Layers")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[2]) for line in lines]
    shown = [name for row in rows for name in row]
    assert sorted(shown) == sorted({_part(name) for name in MODULES} - {"__pyinstaller"})
    levels = [[_layer(name) for name in row] for row in rows if row]
    assert all(min(above) > max(below) for above, below in pairwise(levels))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_strictly_downwards(name: str):
    """A module imports lower layers only, or neighbours in its own folder."""
    upwards = {
        other for other in _own_imports(name) if _layer(other) >= _layer(name) and _part(other) != _part(name)
    } - {name}
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    """Also inside a folder, imports have one direction."""
    graph = {name: _own_imports(name) - {name} for name in MODULES}
    assert list(TopologicalSorter(graph).static_order())


def test_the_training_side_does_not_know_the_exporting_side():
    """What trains reaches the agent through the journal alone; ``launcher``, which starts agents, is the one door."""
    training, found = {"run", "handover", "startup", "training"}, {"launcher"}
    reached = [name for name in MODULES if _part(name) in training]
    while reached:
        name = reached.pop()
        if name not in found:
            found.add(name)
            reached.extend(_own_imports(name))
    assert not {_part(name) for name in found} & {"translate", "otlp", "exporters", "agent"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if _part(name) not in GUESTS))
def test_other_packages_are_imported_only_where_the_table_says(name: str):
    """Every dependency has its place; an integration imports its framework."""
    allowed = set().union(*(packages for prefix, packages in FOREIGN.items() if name.startswith(prefix)))
    foreign = {each for each in _imports(name) if each.split(".")[0] not in {*sys.stdlib_module_names, PACKAGE}}
    assert not {each for each in foreign if not any(f"{each}.".startswith(f"{prefix}.") for prefix in allowed)}


def test_what_is_imported_is_declared():
    """A package that only another one brings may go when that one changes."""
    declared = re.findall(r'^    "([a-z0-9-]+)>=', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    for name in (each for each in MODULES if _part(each) not in GUESTS):
        for imported in _imports(name):
            if imported.split(".")[0] not in {*sys.stdlib_module_names, PACKAGE}:
                found = [DISTRIBUTIONS[each] for each in DISTRIBUTIONS if f"{imported}.".startswith(f"{each}.")]
                assert found, f"{name} imports {imported}; say in DISTRIBUTIONS what brings it"
                assert set(found) <= set(declared)


def test_integrations_use_the_public_surface_only():
    """What an integration can do, a user can do."""
    integrations = [name for name in MODULES if _part(name) == "integrations"]
    used = {other for name in integrations for other in _own_imports(name) if _part(other) != "integrations"}
    assert used <= {"__init__"}


def test_importing_the_package_loads_nothing_heavy():
    """A training process gets neither torch nor the SDK, an exporter or a network library from us."""
    code = f"import sys, {PACKAGE}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert PACKAGE in loaded
    assert not [each for each in loaded if f"{each}.".startswith(tuple(f"{heavy}." for heavy in HEAVY))]


def test_importing_the_package_starts_nothing():
    """No thread, no child process and no file is the work of an import."""
    code = (
        "import os, threading; before = set(os.listdir('/proc/self/fd'))\n"
        f"import {PACKAGE}\n"
        "print(threading.active_count(), len(set(os.listdir('/proc/self/fd')) - before),"
        " open(f'/proc/self/task/{os.getpid()}/children').read().strip() or 0)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown == ["1", "0", "0"]
