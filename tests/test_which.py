"""A run is found by what people call it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from periflow_otel.cli.which import first_called
from periflow_otel.errors import ConfigurationError


class Run(NamedTuple):
    """What a run is called."""

    run_id: str
    name: str = ""
    logs: tuple[str, ...] = ()


def test_an_id_comes_before_a_name_and_a_name_before_a_part_of_an_id():
    """And of runs of the same name the first is meant, which is the latest."""
    part, latest, named, own = Run("baseline-2"), Run("3", "baseline"), Run("4", "baseline"), Run("baseline")
    assert first_called([part, latest, named, own], "baseline") is own
    assert first_called([part, latest, named], "baseline") is latest
    assert first_called([part], "baseline") is part
    assert first_called([part, latest], "other") is None


def test_a_part_of_several_ids_means_none_of_them():
    """They are listed, as far as a person reads; attempts of the same run are one."""
    runs = [Run(f"20261126-{number}") for number in range(7)]
    with pytest.raises(ConfigurationError, match=r"more of one: 20261126-0, .*20261126-4 and 2 more"):
        first_called(runs, "20261126")
    assert first_called([Run("20261126-1"), Run("20261126-1")], "1126") == Run("20261126-1")


@pytest.mark.parametrize("place", ["train.log", "train.traces.jsonl", "train.metrics.2.jsonl.gz", "."])
def test_a_run_is_called_by_its_files_too(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its metric log, what stands beside it, and the folder of both, where these are."""
    monkeypatch.chdir(tmp_path)
    run, other = Run("1", logs=(str(tmp_path / "train.log"),)), Run("2", logs=(str(tmp_path / "x" / "trains.log"),))
    if place != ".":
        assert first_called([other, run], place) is None
        Path(place).touch()
    assert first_called([other, run], place) is run
