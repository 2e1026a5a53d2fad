"""A script whose author runs a strict type checker; ``make check`` does. What is ignored here must be an error."""

import numpy as np

import periflow_otel as pf
from periflow_otel import testing


@pf.train_step()
def train(batch: list[int]) -> float:
    """Keep what it takes and returns, as decorators of types do not always."""
    return 1 / len(batch)


@pf.train_step()
async def train_later(batch: list[int]) -> float:
    """Keep that it is to be awaited."""
    return 1 / len(batch)


def record(floats: dict[str, float], integers: dict[str, int | None], lists: dict[str, list[float]]) -> None:
    """Give what training code has at hand: no dict of it need be made anew."""
    pf.metric(floats)
    pf.metric(integers)
    pf.metric(lists, step=3)
    pf.metric({"loss": np.float32(0.5), "norm": np.ones(1), "lr": (0.1, 0.2), "phase": "warm-up", "best": None})
    with pf.span("evaluation", batches=np.int64(3)):
        pf.metric({"what": object()})  # type: ignore[dict-item]


async def main() -> bool:
    """Begin, and end."""
    pf.init(10, config={"lr": 0.1}, work={"tokens": 8192})
    loss: float = train([1, 2])
    loss += await train_later([3])
    with pf.train_step(2):
        record({"loss": loss}, {"epoch": None}, {"norms": [0.5]})
    run: pf.TrainingRun | None = pf.current_run()
    with testing.capture() as captured:
        assert captured.steps[0].metrics["loss"] < 1
    return pf.shutdown() if run is not None else False
