"""The examples train, record what they do, and go on from their checkpoints."""

import gzip
import pickle
import re
import runpy
import shlex
import signal
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from programs import Collector, ReceivedSpan, needs, wait_until
from training import Training, cloud

from periflow_otel import names, testing

EXAMPLES = Path(__file__).parents[1] / "examples"
CIFAR = EXAMPLES / "cifar" / "main.py"
GLUE = EXAMPLES / "huggingface" / "run_glue.py"
AUTOENCODER = EXAMPLES / "pth-lightning" / "main.py"
TORCHRUN = "from torch.distributed.run import main; main()"
SCRIPT = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"

pytestmark = [
    needs("torch"),
    needs("transformers"),
    needs("lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning is behind torch
]


def train_on_two_ranks(collector: Collector, code: str, *arguments: object) -> dict[int, list[ReceivedSpan]]:
    """Train to the end in cloud mode; return the spans that arrived, by rank."""
    with Training(*arguments, code=code, **cloud(collector.http_endpoint, WORLD_SIZE="2")) as training:
        training.wait(240)
        training.wait_for_agent()
        assert training.process.returncode == 0, training.errors
    by_rank: dict[int, list[ReceivedSpan]] = {}
    for span in collector.spans():
        by_rank.setdefault(span.attributes[names.RANK], []).append(span)
    return by_rank


def check_ranks(
    ranks: dict[int, list[ReceivedSpan]], steps: int, checkpoints: list[int], phases: dict[str, int]
) -> None:
    """Check that both ranks have the same steps, in the same traces, and what else is expected of each."""
    assert sorted(ranks) == [0, 1]
    traces = []
    for spans in ranks.values():
        by_step = {span.attributes[names.STEP]: span for span in spans if span.name == names.STEP_SPAN}
        assert sorted(by_step) == list(range(1, steps + 1))
        assert [
            step for step in sorted(by_step) for name, _, _ in by_step[step].events if name == names.CHECKPOINT_UPLOAD
        ] == checkpoints
        assert {name: sum(span.name == name for span in spans) for name in phases} == phases
        assert [span.attributes[names.OUTCOME] for span in spans if span.name == names.RUN_SPAN] == ["finished"]
        traces.append([by_step[step].trace_id for step in sorted(by_step)])
    assert traces[0] == traces[1]


def test_cifar_on_two_ranks(collector: Collector):
    """A loop of one's own, under torchrun."""
    arguments = ("--batch-size", 128, "--total-epochs", 1, "--save", "out", "--save-interval", 2, "--test-interval", 3)
    ranks = train_on_two_ranks(
        collector, TORCHRUN, "--standalone", "--nproc_per_node=2", CIFAR, "--use-cpu", *arguments
    )
    check_ranks(ranks, 6, [2, 4, 6], {"evaluation": 2})
    assert len(collector.points("periflow.metric.loss")) == 2 * 6


def test_huggingface_on_two_ranks(collector: Collector):
    """The callback for transformers, under torchrun; an optimizer step takes four batches."""
    arguments = (
        *("--output_dir", "out", "--use_cpu", "--max_steps", 6, "--gradient_accumulation_steps", 4),
        *(
            "--save_steps",
            2,
            "--logging_steps",
            1,
            "--eval_strategy",
            "steps",
            "--eval_steps",
            3,
            "--report_to",
            "none",
        ),
    )
    ranks = train_on_two_ranks(collector, TORCHRUN, "--standalone", "--nproc_per_node=2", GLUE, *arguments)
    check_ranks(ranks, 6, [2, 4, 6], {"evaluation": 2, "checkpoint": 3})
    assert len(collector.points("periflow.metric.loss")) == 2 * 6
    assert sorted(path.name for path in Path("out").glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 4, 6)]


def test_lightning_on_two_ranks(collector: Collector):
    """The callback for Lightning, which starts the second process itself."""
    arguments = ("--checkpoint-dir", "out", "--num-epochs", 2, "--accelerator", "cpu", "--devices", 2)
    ranks = train_on_two_ranks(collector, SCRIPT, AUTOENCODER, *arguments)
    check_ranks(ranks, 52, [26, 52], {"validation": 2, "checkpoint": 2})
    assert len(collector.points("periflow.metric.train_loss")) == 2 * 5
    assert len(list(Path("out").glob("*.ckpt"))) == 2


def test_cifar_saves_when_asked_and_goes_on():
    """An emergency save answers at once, and the next attempt begins with the step after it."""
    arguments = ("--batch-size", "32", "--save", "out", "--save-interval", "1000000", "--load", "out")
    command = [sys.executable, CIFAR, "--use-cpu", *arguments]
    with testing.capture() as captured:
        with subprocess.Popen([*command, "--total-epochs", "50"]) as process:
            try:
                wait_until(lambda: captured.steps, 60, "training has begun")
                captured.request_emergency_save()
                wait_until(lambda: captured.checkpoints, 60, "a checkpoint is there")
            finally:
                process.send_signal(signal.SIGKILL)
        saved = captured.checkpoints[-1]
        subprocess.run([*command, "--total-epochs", str(saved // 48 + 1)], check=True, timeout=240)
    assert captured.events[0].attributes[names.SAVE_TYPE] == "EMERGENCY"
    first, second = captured.runs
    assert (first.initial_step, second.initial_step) == (0, saved)
    resumed = [step.number for step in captured.steps if step.number > saved]
    assert resumed[-(second.total_steps - saved) :] == list(range(saved + 1, second.total_steps + 1))


# Data of one's own


def test_cifar_reads_cifar_10(tmp_path: Path):
    """As it comes for Python, if it is on disk."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [3, 4]}))
    train, test = runpy.run_path(str(CIFAR))["load_data"](tmp_path)
    assert (len(train), len(test)) == (4, 2)
    image, label = train[1]
    assert image.shape == (3, 32, 32)
    assert label == 4
    assert image[1, 0, 1] == pytest.approx(pixels[1, 1025] / 255)


def test_cifar_reads_cifar_100(tmp_path: Path):
    """With its hundred fine labels."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.zeros((2, 3072), dtype=np.uint8)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"fine_labels": [3, 99], b"coarse_labels": [0, 1]}))
    train, test = runpy.run_path(str(CIFAR))["load_data"](tmp_path, "cifar100")
    assert (len(train), len(test), int(train[1][1])) == (2, 2, 99)


@pytest.mark.parametrize(("model", "parameters"), [("resnet18", 11.2), ("resnet50", 23.7)])
def test_cifar_takes_larger_models(model: str, parameters: float):
    """About as large as those of the same name elsewhere, in millions of parameters."""
    network = runpy.run_path(str(CIFAR))["make_network"](model, 100)
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(parameters, rel=0.05)


def test_huggingface_reads_sst_2(tmp_path: Path):
    """As GLUE has it, if it is on disk."""
    (tmp_path / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "SST-2" / name).write_text('sentence\tlabel\nso "kind\t1\n' + name + "\t0\n")
    train, evaluation = runpy.run_path(str(GLUE))["load_data"](tmp_path)
    assert train == [(('so "kind',), 1), (("train.tsv",), 0)]
    assert evaluation[1] == (("dev.tsv",), 0)


def test_huggingface_reads_mnli(tmp_path: Path):
    """Two sentences and one of three labels; without those that nobody agreed on."""
    (tmp_path / "MNLI").mkdir()
    for name in ("train.tsv", "dev_matched.tsv"):
        lines = ["sentence1\tsentence2\tgold_label", "a\tb\tneutral", "c\td\t-"]
        (tmp_path / "MNLI" / name).write_text("\n".join(lines))
    train, _ = runpy.run_path(str(GLUE))["load_data"](tmp_path, "MNLI")
    assert train == [(("a", "b"), 1)]


def test_huggingface_takes_a_model_from_disk(tmp_path: Path):
    """In the place of the tiny one that is made on the spot, as the command of the template does."""
    first = [sys.executable, GLUE, "--use_cpu", "--max_steps", "1", "--report_to", "none"]
    subprocess.run([*first, "--output_dir", "first"], check=True, timeout=240)
    again = ["--model_name_or_path", "first/checkpoint-1", "--task_name", "MNLI", "--max_seq_length", "32"]
    subprocess.run(
        [*first, "--output_dir", "second", *again, "--do_train", "--cache_dir", str(tmp_path)], check=True, timeout=240
    )
    assert (Path("second") / "checkpoint-1" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte.gz"])
def test_lightning_reads_mnist(tmp_path: Path, name: str):
    """Packed or not, if it is on disk."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytes(16) + bytes(784) + bytes([255]) * 784
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    images = runpy.run_path(str(AUTOENCODER))["load_images"](tmp_path)
    assert images.shape == (2, 784)
    assert images.sum(dim=1).tolist() == [0, 784]


# Templates


@pytest.mark.parametrize("script", [CIFAR, GLUE, AUTOENCODER], ids=lambda path: path.parent.name)
def test_the_template_fits_the_example(script: Path, monkeypatch: pytest.MonkeyPatch):
    """It says where telemetry goes, saves where PeriFlow looks, and gives arguments that the script takes."""
    template = yaml.safe_load((script.parent / "pf-template.yml").read_text())
    command = shlex.split(template["job_setting"]["docker"]["command"])
    variables = template["job_setting"]["docker"]["env_var"]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in variables
    assert template["checkpoint"]["output_checkpoint_dir"] in command
    arguments = command[command.index(script.name) :]
    monkeypatch.setattr(sys, "argv", arguments)
    assert runpy.run_path(str(script))["parse_args"]()
    assert "PERIFLOW_RUN_ID" in variables  # or a job that starts again on another machine is another run


@pytest.mark.parametrize("script", [CIFAR, GLUE, AUTOENCODER], ids=lambda path: path.parent.name)
def test_what_an_example_needs_is_this_clone_and_what_others_publish(script: Path):
    """A name that is on no index yet could be registered by anyone."""
    lines = (script.parent / "requirements.txt").read_text().splitlines()
    needed = [line for line in lines if not line.startswith("#")]
    assert not [line for line in needed if line.startswith("periflow")]
    root = script.parent / needed[0].partition("[")[0]
    assert (root / "pyproject.toml").samefile(EXAMPLES.parent / "pyproject.toml")
    extras = re.findall(r"\[(\w+)\]", needed[0])
    assert set(extras) <= set(metadata("periflow_otel").get_all("Provides-Extra") or [])
