"""A notebook, executed by a real kernel: cells that fail, that are interrupted, and that are run again."""

import json
from pathlib import Path
from typing import Any

import pytest
from programs import wait_until

from periflow_otel import names

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")

from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what talks to kernels

DEFINE = """
import signal, torch
from transformers import Trainer, TrainingArguments
from periflow_otel.integrations.huggingface import PeriFlowCallback

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.calls = 0

    def forward(self, x, labels):
        self.calls += 1
        if self.calls == 3 and way == "fail":
            raise FloatingPointError("no number")
        if self.calls == 3 and way == "interrupt":
            signal.raise_signal(signal.SIGINT)  # as the button of a notebook does
        return {"loss": torch.nn.functional.cross_entropy(self.layer(x), labels)}

args = TrainingArguments("out", max_steps=5, per_device_train_batch_size=2, save_strategy="no", report_to="none",
                         use_cpu=True, disable_tqdm=True, logging_strategy="no")
data = [{"x": torch.eye(4)[n % 4], "labels": torch.tensor(n % 2)} for n in range(16)]
"""
TRAIN = """
trainer = Trainer(Model(), args, train_dataset=data, callbacks=[PeriFlowCallback()])
trainer.train()
print('done')
"""
CELLS = [
    DEFINE,
    "way = 'fail'", TRAIN,  # fails
    "way = 'go on'", TRAIN,  # the same cell again
    "way = 'interrupt'", TRAIN,
    "way = 'go on'", TRAIN + TRAIN,  # two trainings
    "import periflow_otel as pf; pf.metric({'afterwards': 1.0}); print(pf.shutdown())",
]  # fmt: skip


def printed(cell: Any) -> str:
    """Return what is shown below a cell, but for tracebacks and values."""
    return "".join(each.get("text", "") for each in cell.outputs if each.output_type == "stream")


def failure(cell: Any) -> str | None:
    """Return what a cell has ended with."""
    return next((each.ename for each in cell.outputs if each.output_type == "error"), None)


def run_spans() -> list[dict[str, Any]]:
    """Return the spans of the runs that are over, in order, from the files that the kernel has left."""
    lines = [line for path in Path().glob("*.traces.jsonl") for line in path.read_text("utf-8").splitlines()]
    spans = [
        span
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
        if span["name"] == names.RUN_SPAN
    ]
    return sorted(spans, key=lambda span: int(span["startTimeUnixNano"]))


def outcomes() -> list[str]:
    """Return how they have ended."""
    attributes = [{each["key"]: each["value"] for each in span["attributes"]} for span in run_spans()]
    return [each[names.OUTCOME]["stringValue"] for each in attributes]


def test_cells_that_fail_and_are_run_again():
    """Each training is a run with the outcome that it had, and telemetry shows nothing below a cell."""
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", allow_errors=True).execute()
    trained = [cell for cell in notebook.cells if "trainer.train()" in cell.source]
    assert [failure(cell) for cell in trained] == ["FloatingPointError", None, "KeyboardInterrupt", None]
    assert [printed(cell).count("done") for cell in trained] == [0, 1, 0, 2]
    assert printed(notebook.cells[-1]) == "True\n"
    assert not [cell.source for cell in notebook.cells if "periflow" in printed(cell).lower()]
    wait_until(lambda: len(run_spans()) == 5, 60)
    assert outcomes() == ["failed", "finished", "interrupted", "finished", "finished"]
