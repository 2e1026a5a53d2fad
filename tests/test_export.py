"""Every value leaves as a row that pandas reads, with its step, time and rank."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorder import STARTED_NS, Recorder, S, give, make_run

from periflow_otel.cli import main
from periflow_otel.exporters.otlp_file import OtlpPointFile, OtlpSpanFile
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator


def record(folder: Path, rank: int = 0, run_id: str = "run", steps: int = 3, log: str = "train") -> None:
    """Write the points of a rank: a loss a step, which is not a number in the second, and text."""
    recorder, run = Recorder(), make_run(run_id=run_id, rank=rank, local_log=str(folder / f"{log}{rank}.log"))
    for step in range(1, steps + 1):
        with recorder.step():
            recorder.work(S)
        recorder.metric({"train/loss": math.nan if step == 2 else 1 / step, "note": "text"})
    recorder.finish()
    for translator, file in ((SpanTranslator(run), OtlpSpanFile()), (PointTranslator(run), OtlpPointFile())):
        give(translator, recorder.inputs)
        translator.settle()
        file.export([(run, item) for item in translator.take()])  # type: ignore[arg-type]  # each its own
        file.close()


@pytest.fixture
def pandas() -> Any:
    """Return what most people read such files with; it comes with the frameworks, and brings no Parquet itself."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return pytest.importorskip("pandas", reason="pandas is not installed")


def frame(pandas: Any, path: Path) -> Any:
    """Return what pandas reads."""
    return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)


@pytest.mark.parametrize("name", ["values.csv", "values.parquet"])
def test_values_have_step_time_and_rank(tmp_path: Path, name: str, pandas: Any):
    """What is not a number is one to pandas; the columns have types."""
    record(tmp_path)
    record(tmp_path, rank=1)
    out = tmp_path / "out" / name
    out.parent.mkdir()
    assert main(["export", str(tmp_path), "-o", str(out)]) == 0
    values = frame(pandas, out)
    assert list(values.columns) == ["run", "attempt", "rank", "step", "time", "metric", "value"]
    assert list(map(str, values.dtypes)) == ["str", "int64", "int64", "int64", "float64", "str", "float64"]
    assert set(values["run"]) == {"run"}
    assert set(values["metric"]) == {"train/loss"}
    first = values[values["rank"] == 0]
    assert list(first["step"]) == [1, 2, 3]
    assert first["value"].isna().tolist() == [False, True, False]
    assert first["value"].dropna().tolist() == [1.0, 1 / 3]
    assert first["time"].tolist() == pytest.approx([STARTED_NS / 1e9 + step for step in (1, 2, 3)], abs=0.002)
    assert len(values) == 6


def test_one_run_of_several_is_chosen_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Its files are those of the working folder; the rows go to stdout."""
    record(tmp_path, run_id="one", log="one")
    record(tmp_path, run_id="other", log="other")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "other"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"other"}
    assert len(rows) == 3


def test_nothing_recorded_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With a status that a script sees."""
    assert main(["export", str(tmp_path)]) == 2
    assert "nothing is recorded there" in capsys.readouterr().err


@pytest.mark.parametrize("sources", [["nothing"], ["/no/such/file"]])
def test_a_source_that_is_none_is_an_error(
    sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Which names it; nothing is written, and what was there is still."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "values.csv").write_text("earlier")
    assert main(["export", *sources]) == 2
    assert main(["export", *sources, "-o", "values.csv"]) == 2
    said = capsys.readouterr()
    assert (said.out, (tmp_path / "values.csv").read_text()) == ("", "earlier")
    assert sources[0] in said.err
    assert [each.name for each in tmp_path.iterdir()] == ["values.csv"]


def test_a_full_disk_is_named_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What takes no writing is told of by its name; what is no file is not replaced by one."""
    record(tmp_path)
    assert main(["export", str(tmp_path), "-o", "/dev/full"]) == 2
    assert "/dev/full: No space left on device" in capsys.readouterr().err
    assert Path("/dev/full").is_char_device()


def test_parquet_wants_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A terminal would show nonsense."""
    record(tmp_path)
    assert main(["export", str(tmp_path), "--parquet"]) == 2
    assert "-o values.parquet" in capsys.readouterr().err


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The remedy is a line to paste."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "v.parquet")]) == 2
    assert "pip install 'periflow_otel[parquet]'" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path):
    """As ``| head`` does."""
    record(tmp_path, steps=20_000)
    command = [sys.executable, "-m", "periflow_otel", "export", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith(b"run,")
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)
