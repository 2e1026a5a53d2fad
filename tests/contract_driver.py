"""Runs sequences of calls under ``periflow_sdk`` or ``periflow_otel`` and tells what came of each.

    python contract_driver.py PACKAGE FOLDER < sequences > outcomes        # one JSON value a line

Every sequence has a process, a folder and an environment of its own. In cloud mode this is also the agent of PeriFlow
that ``periflow_sdk`` talks to: it answers every step, and reads what the named pipes of the rank bring.
"""

import contextlib
import json
import logging
import os
import struct
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any

PIPES = ("step_info", "metric", "ack", "emergency_save", "last_step", "ckpt")
RANK = os.getpid()  # names the pipes, which are in /tmp for all users and jobs


def stub_torch() -> None:
    """Spare ``periflow_sdk`` the import of torch, which it only asks whether there is a process group."""
    torch = types.ModuleType("torch")
    torch.distributed = types.SimpleNamespace(is_initialized=lambda: False)  # type: ignore[attr-defined]
    sys.modules["torch"] = torch


class Original:
    """``periflow_sdk``, and the agent that it talks to."""

    logger = "PERIFLOW_SDK"

    def __init__(self) -> None:
        """Import it, which reads the environment."""
        stub_torch()
        import periflow_sdk  # noqa: PLC0415  # once per process

        self.pf: Any = periflow_sdk
        self._manager = sys.modules["periflow_sdk.manager"].periflow
        self._pipes: dict[str, int] = {}
        self._sent: dict[str, bytes] = dict.fromkeys(PIPES, b"")

    def before(self) -> None:
        """Answer the step that may end now."""
        if self._open():
            self._write("ack", {"status": "SUCCESS"})

    def step(self) -> int:
        """Return the number of the last step."""
        return int(self._manager._cur_step)

    def request_save(self, step: int) -> None:
        """Ask for an emergency save, and wait until it is known."""
        if self._open():
            self._write("emergency_save", {"emergency_save_step": step})
            deadline_s = time.monotonic() + 5
            while self._manager._emergency_save_step is None and time.monotonic() < deadline_s:
                time.sleep(0.001)

    def close(self) -> dict[str, Any]:
        """Return what was recorded."""
        if not self._open():
            return {"ended": None, "checkpoints": [], "metrics": []}
        messages = {name: self._read(name) for name in ("step_info", "ckpt", "metric")}
        return {
            "ended": [each["step"] for each in messages["step_info"]],
            "checkpoints": [[each["step"], each["save_type"]] for each in messages["ckpt"]],
            "metrics": messages["metric"],
        }

    def _open(self) -> bool:
        """Open the pipes once they are there, in cloud mode."""
        paths = {name: f"/tmp/periflow_{name}_ipc_fifo_{RANK}" for name in PIPES}  # noqa: S108  # where it has them
        if not self._pipes and all(map(os.path.exists, paths.values())):
            self._pipes = {name: os.open(path, os.O_RDWR | os.O_NONBLOCK) for name, path in paths.items()}
            for path in paths.values():
                os.unlink(path)  # noqa: PTH108  # whoever has it open keeps it
        return bool(self._pipes)

    def _write(self, name: str, message: object) -> None:
        content = json.dumps(message).encode()
        os.write(self._pipes[name], struct.pack("<I", len(content)) + content)

    def _read(self, name: str) -> list[Any]:
        data = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipes[name], 1 << 16):
                data += chunk
        messages = []
        while data:
            end = 4 + struct.unpack_from("<I", data)[0]
            messages.append(json.loads(data[4:end]))
            data = data[end:]
        return messages


class Ours:
    """``periflow_otel``, read back from its journal."""

    logger = "periflow_otel"

    def __init__(self) -> None:
        """Import it."""
        import periflow_otel  # noqa: PLC0415  # once per process

        self.pf: Any = periflow_otel

    def before(self) -> None:
        """Do nothing: nobody answers."""

    def step(self) -> int:
        """Return the number of the last step."""
        run = self.pf._default
        return int(run._step) if run else 0

    def request_save(self, step: int) -> None:
        """Ask for an emergency save."""
        from periflow_otel.journal.control import Control  # noqa: PLC0415  # of ours only

        if run := self.pf._default:
            Control(run.folder).request(step)

    def close(self) -> dict[str, Any]:
        """Return what was recorded, and let the metric log be written."""
        from journals import read_all  # noqa: PLC0415  # of ours only

        from periflow_otel.exporters.metric_log import MetricLog  # noqa: PLC0415
        from periflow_otel.journal.folders import journal_folder  # noqa: PLC0415
        from periflow_otel.records import Checkpoint, Metric, StepEnded  # noqa: PLC0415

        run = self.pf._default
        if run is None:
            return {"ended": None, "checkpoints": [], "metrics": []}
        records = read_all(journal_folder(run.folder, run.info.attempt, run.info.rank)).records
        metrics = [each for each in records if isinstance(each, Metric)]
        MetricLog().export([(run.info, each) for each in metrics])
        return {
            "ended": [each.step for each in records if isinstance(each, StepEnded)],
            "checkpoints": [
                [each.step, "EMERGENCY" if each.is_emergency else "NORMAL"]
                for each in records
                if isinstance(each, Checkpoint)
            ],
            "metrics": [{**each.values, "step": each.step} for each in metrics],
        }


class Raised(Exception):  # noqa: N818  # it stands for whatever a body raises
    """What the body of a step raises, where a sequence says so."""


VALUES: dict[str, Any] = {"set": {1}, "object": object(), "bytes": b"x"}
"""What JSON cannot write, by a name."""


def value_of(given: Any) -> Any:
    """Return a value as a script would give it.

    A list ``["!", name]`` stands for one of ``VALUES``, ``{"!keys": pairs}`` for a dict whose keys need not be text.
    """
    if isinstance(given, list):
        if len(given) == 2 and given[0] == "!":
            return VALUES[given[1]]
        return [value_of(each) for each in given]
    if isinstance(given, dict):
        if "!keys" in given:
            return {key: value_of(each) for key, each in given["!keys"]}
        return {key: value_of(each) for key, each in given.items()}
    return given


class Player:
    """Does what a sequence says, and notes what comes of every call."""

    def __init__(self, subject: "Original | Ours") -> None:
        """Begin."""
        self._subject = subject
        self._notices: list[str] = []
        self.outcomes: list[dict[str, Any]] = []
        handler = logging.Handler()
        handler.emit = lambda record: self._notices.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger(subject.logger)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False

    def play(self, calls: list[Any]) -> None:
        """Make calls."""
        for name, *arguments in calls:
            self._call(name, arguments)

    def _call(self, name: str, arguments: list[Any]) -> None:
        self._subject.before()
        self._notices.clear()
        outcome: dict[str, Any] = {"call": name, "arguments": arguments}
        self.outcomes.append(outcome)
        try:
            outcome["returned"] = self._do(name, arguments)
        except BaseException as error:  # noqa: BLE001  # whatever it is
            outcome["raised"] = [each.__name__ for each in type(error).__mro__]
            outcome["message"] = "".join(traceback.format_exception_only(type(error), error))
        outcome["step"] = self._subject.step()
        outcome["notices"] = list(self._notices)

    def _do(self, name: str, arguments: list[Any]) -> Any:
        pf = self._subject.pf
        if name == "with":
            body, raises = arguments
            with pf.train_step():
                self.play(body)
                if raises:
                    raise Raised
            return None
        if name == "request_save":
            return self._subject.request_save(*arguments)
        if name == "call_decorated":
            return pf.train_step()(lambda: arguments[0])()
        return getattr(pf, name)(*map(value_of, arguments))


def run(package: str, sequence: dict[str, Any]) -> dict[str, Any]:
    """Play a sequence in this process, which is its own."""
    os.environ.update({name: value.replace("{RANK}", str(RANK)) for name, value in sequence["environ"].items()})
    subject: Original | Ours = Original() if package == "periflow_sdk" else Ours()
    player = Player(subject)
    player.play(sequence["calls"])
    recorded = subject.close()
    logs = {path.name: path.read_bytes().decode("latin-1") for path in sorted(Path.cwd().glob("*.log"))}
    return {"outcomes": player.outcomes, "recorded": recorded, "logs": logs}


def main(package: str, folder: str) -> None:
    """Give every sequence to a child."""
    if package == "periflow_otel":
        import periflow_otel.exporters.metric_log  # noqa: F401, PLC0415  # once for all children
    for number, line in enumerate(sys.stdin):
        place = Path(folder) / f"{number}"
        place.mkdir()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.chdir(place)
            os.environ["PERIFLOW_STATE_DIR"] = str(place / "state")
            try:
                outcome = run(package, json.loads(line))
            except BaseException:  # noqa: BLE001  # the test shows it
                outcome = {"broken": traceback.format_exc()}
            with os.fdopen(writing, "w") as pipe:
                json.dump(outcome, pipe)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            sys.stdout.write(pipe.read() + "\n")
        sys.stdout.flush()
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
