"""Trainings that fall ill in the ways that trainings do, and healthy ones that may look like it: see time_to_cause.py.

All are the same loop: load a batch, take a step, meet the other ranks in a collective, record, save now and then. Each
class says what is different, in those that fall ill from the onset on.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist

import periflow_otel as pf
from periflow_otel.clock import Clock, replaced_clock

STEP_S = 0.06
"""Of which a rank waits most, as for a GPU: twenty trainings have room on two processors."""
SAVE_EVERY = 100


class Training:
    """What healthy ranks do. Habits override what they do otherwise."""

    steps = 10_000
    meets = True
    """The ranks wait for each other in every step."""

    def __init__(self, onset_s: float) -> None:
        """Begin; what goes wrong does so after so many seconds."""
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.step = 0
        self.random = Random(self.rank)
        self._onset_s = time.monotonic() + onset_s
        self.kept: list[bytes] = []
        self._values = torch.ones(8)
        self._is_ill = False

    @property
    def is_ill(self) -> bool:
        """Whether it is time for what goes wrong; the moment is noted in a file."""
        if not self._is_ill and time.monotonic() >= self._onset_s:
            self.fall_ill()
        return self._is_ill

    def fall_ill(self) -> None:
        """Note that now it goes wrong."""
        self._is_ill = True
        with suppress(FileExistsError), Path("onset").open("x") as file:
            file.write(str(time.time()))

    def is_me(self, rank: int = 1) -> bool:
        """Tell whether this rank goes wrong, and does so by now."""
        return self.rank == rank and self.is_ill

    def load(self) -> None:
        """Fetch a batch."""
        time.sleep(0.003)

    def forward(self) -> None:
        """Compute."""
        time.sleep(STEP_S * self.random.uniform(0.9, 1.1))

    def meet(self) -> None:
        """Wait for the others."""
        if self.meets and self.ranks > 1:
            dist.all_reduce(self._values)

    def loss(self) -> float:
        """Return what is recorded."""
        return 1 / self.step

    def after_step(self) -> None:
        """Do what comes between two steps."""
        if self.step % SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        if self.rank == 0:
            time.sleep(0.1)
        pf.upload_checkpoint()

    def run(self) -> None:
        """Train."""
        pf.init(total_train_steps=self.steps, local_log_name=str(Path("train.log").absolute()))
        for step in range(1, self.steps + 1):
            self.step = step
            self.load()
            with pf.train_step():
                self.forward()
                self.meet()
            pf.metric({"loss": self.loss()})
            self.after_step()


class SlowLoader(Training):
    """Fetches batches slowly."""

    def load(self) -> None:
        time.sleep(0.06 if self.is_me() else 0.003)


class SlowOutside(Training):
    """Does something else between two steps."""

    def after_step(self) -> None:
        super().after_step()
        self.log_images()

    def log_images(self) -> None:
        time.sleep(0.05 if self.is_me(0) else 0)


class SlowInside(Training):
    """Computes slowly."""

    def forward(self) -> None:
        super().forward()
        if self.is_me():
            self.augment()

    def augment(self) -> None:
        """Be slow."""
        time.sleep(2.5 * STEP_S)


class HangInLock(Training):
    """Waits for a lock that nobody gives back."""

    def forward(self) -> None:
        super().forward()
        if self.is_me():
            self.enter_cache()

    def enter_cache(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


class HangInCollective(Training):
    """Waits for a message that nobody sends."""

    def meet(self) -> None:
        if self.is_me():
            dist.recv(torch.ones(8), src=0)
        super().meet()


class HangInC(Training):
    """Is in a call in C that keeps the interpreter's lock."""

    def forward(self) -> None:
        super().forward()
        while self.is_me(2):
            ctypes.PyDLL(None).sleep(600)


class Died(Training):
    """Is killed, as by the kernel when memory runs out."""

    def forward(self) -> None:
        super().forward()
        if self.is_me():
            os.kill(os.getpid(), signal.SIGKILL)


class RestartLoop(Training):
    """Fails in the same step again and again."""

    def forward(self) -> None:
        super().forward()
        if self.step == 80:
            self.fall_ill()
            raise RuntimeError  # a bad batch


class NotFinite(Training):
    """Records what is no number."""

    def loss(self) -> float:
        return float("nan") if self.is_me() else super().loss()


class Pauses(Training):
    """Makes so much garbage in circles that collecting it takes long."""

    def forward(self) -> None:
        super().forward()
        if self.is_me():
            garbage = [[] for _ in range(300_000)]  # type: ignore[var-annotated]  # of nothing
            gc.collect()
            garbage.clear()


class SlowCheckpoint(Training):
    """Saves slowly."""

    def after_step(self) -> None:
        if self.step % SAVE_EVERY == 0 or (self.is_ill and self.step % 25 == 0):
            self.save()

    def save(self) -> None:
        if self.rank == 0:
            time.sleep(2.0 if self.is_ill else 0.1)
        pf.upload_checkpoint()


class SlowDisk(Training):
    """Reads its batches from a disk that has become slow."""

    SIZE = 1 << 20

    def load(self) -> None:
        if self.rank == 1:
            self._read()
        else:
            super().load()

    def _read(self) -> None:
        _ = self.is_ill
        file = os.open("data", os.O_RDONLY | os.O_CREAT)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(file, self.SIZE, self.step % 32 * self.SIZE)
        os.close(file)


class Leak(Training):
    """Keeps what it should not."""

    def forward(self) -> None:
        super().forward()
        if self.is_me():
            self.kept.append(b"x" * (1 << 20))


class Swapping(Training):
    """Needs more memory than there is."""

    _kept = bytearray()

    def forward(self) -> None:
        super().forward()
        if self.is_me() and not self._kept:
            self._kept = bytearray(400 << 20)
        for at in range(0, len(self._kept), 4096):
            self._kept[at] = self.step % 256


class Throttled(Training):
    """Computes on a processor; it is held back from outside."""

    def forward(self) -> None:
        _ = self.is_ill
        until_s = time.thread_time() + 0.01
        while time.thread_time() < until_s:
            pass
        time.sleep(0.04)


class FullDisk(Training):
    """Fills the disk that its log is on."""

    def save(self) -> None:
        super().save()
        if self.is_ill and self.rank == 0:
            with suppress(OSError), Path("model.pt").open("ab") as file:
                file.write(b"x" * (200 << 20))


class ClockJump(Training):
    """Has its clock set an hour forward. The clock that it is given stands in for the machine's, which others use."""

    def run(self) -> None:
        with replaced_clock(Clock(self.time_ns, time.monotonic_ns)):
            super().run()

    def time_ns(self) -> int:
        """Return the time of day, in nanoseconds."""
        return time.time_ns() + (3600 * 10**9 if self.is_me() else 0)


class LostTelemetry(Training):
    """Records more than its journal may hold while nobody takes it."""

    meets = False

    def after_step(self) -> None:
        super().after_step()
        if self.is_me(0):
            for _ in range(400):
                pf.metric({"sample": "x" * 4000})


class UnevenData(Training):
    """Has more to do in each step than the others, which do not wait."""

    meets = False

    def forward(self) -> None:
        super().forward()
        if self.is_me(2):
            time.sleep(2 * STEP_S)


class SlowNode(Training):
    """Two of four ranks compute slowly."""

    meets = False

    def forward(self) -> None:
        super().forward()
        if self.rank >= 2 and self.is_ill:
            self.spin()

    def spin(self) -> None:
        """Be slow."""
        time.sleep(2.5 * STEP_S)


class SlowNodeInStep(SlowNode):
    """Two of four ranks compute slowly, and the others wait for them."""

    meets = True


# What is healthy.


class Evaluating(Training):
    """All ranks evaluate every 150 steps."""

    def after_step(self) -> None:
        super().after_step()
        if self.step % 150 == 0:
            self.evaluate()

    def evaluate(self) -> None:
        time.sleep(3)


class EvaluatingAlone(Evaluating):
    """Rank 0 evaluates, and the others wait in the next step."""

    def evaluate(self) -> None:
        if self.rank == 0:
            super().evaluate()


class SavingOften(Training):
    """Saves every 30 steps, a tenth of a second each."""

    def after_step(self) -> None:
        if self.step % 30 == 0:
            self.save()


class Compiling(Training):
    """Takes long for the first two steps, and rank 0 longer."""

    def forward(self) -> None:
        super().forward()
        if self.step <= 2:
            time.sleep(10 + 5 * (self.rank == 0))


class Scheduled(Training):
    """Records the rate of a schedule with warm-up and cycles; the loss goes up and down."""

    def after_step(self) -> None:
        super().after_step()
        rate = min(1.0, self.step / 200) * (0.5 + (self.step % 100) / 200)
        pf.metric({"lr": rate, "loss": 2 + rate * self.random.random()})


class Variable(Training):
    """Takes sequences of another length in each step, the same for all ranks."""

    def forward(self) -> None:
        time.sleep(Random(self.step).uniform(0.02, 0.15))


class VariableByRank(Training):
    """Takes sequences of another length in each step and on each rank."""

    def forward(self) -> None:
        time.sleep(self.random.uniform(0.02, 0.15))


class ShortSteps(Training):
    """Takes steps of two milliseconds."""

    steps = 1_000_000

    def load(self) -> None:
        pass

    def forward(self) -> None:
        time.sleep(0.002)


class LongSteps(Training):
    """Takes steps of eight seconds."""

    def forward(self) -> None:
        time.sleep(8 + self.random.random())


class Accumulating(Training):
    """Meets the others in every fourth step only."""

    def meet(self) -> None:
        if self.step % 4 == 0:
            super().meet()


class Epochs(Training):
    """Shuffles and opens its data again after every 200 steps."""

    def load(self) -> None:
        super().load()
        if self.step % 200 == 0:
            time.sleep(2 + self.random.random())


class Alone(Training):
    """Ranks that do not wait for each other, a few percent apart."""

    meets = False


class Logging(Training):
    """Rank 0 says more than the others, which takes it two milliseconds."""

    def after_step(self) -> None:
        super().after_step()
        if self.rank == 0:
            time.sleep(0.002)


class Asked(Training):
    """Ends when it is asked to, and is started again."""

    def forward(self) -> None:
        super().forward()
        if self.step == 200 and os.environ["PERIFLOW_ATTEMPT"] == "1":
            raise KeyboardInterrupt


class Ending(Training):
    """Is done after 300 steps."""

    steps = 300


class Collecting(Training):
    """Collects garbage in every fiftieth step, as scripts do that have turned the automatic off."""

    def after_step(self) -> None:
        super().after_step()
        if self.step == 1:
            gc.disable()
        if self.step % 50 == 0:
            gc.collect()


class Growing(Training):
    """Fills a cache of 200 MB in the first minute."""

    def load(self) -> None:
        super().load()
        if len(self.kept) < 200:
            self.kept.append(b"x" * (1 << 20))


class Curriculum(Training):
    """Takes longer and longer sequences, as planned."""

    def forward(self) -> None:
        time.sleep(STEP_S * (1 + min(1.0, self.step / 600)))


def begin(name: str, rank: int, folder: str, onset_s: float, environ: dict[str, str]) -> None:
    """Be a rank of a training."""
    os.environ.update(environ, RANK=str(rank), LOCAL_RANK=str(rank))
    if name.startswith("SlowNode"):
        os.environ["OTEL_RESOURCE_ATTRIBUTES"] = f"host.name=node-{rank // 2}"
    os.chdir(folder)
    out = os.open(f"out-{rank}-{environ['PERIFLOW_ATTEMPT']}", os.O_WRONLY | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, out), (2, out)):
        os.dup2(file, number)
    torch.set_num_threads(1)
    training: Any = globals()[name](onset_s)
    if training.meets and training.ranks > 1:
        dist.init_process_group("gloo")
    training.run()


def main() -> None:
    """Become a rank for each line on stdin, in a process of its own; say its pid."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            begin(*json.loads(line))
            return


if __name__ == "__main__":
    main()
