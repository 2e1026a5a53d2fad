"""The configuration of a run: what is recorded of what a script gives, and that it is there for whoever asks late."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journals import read_all
from recorded import default_run, journal_of, recorded, records_of

import periflow_otel as pf
from periflow_otel.records import Config, Metric
from periflow_otel.run_config import MAX_TEXT_CHARS, MAX_VALUES, RunConfig


@pytest.fixture(autouse=True)
def _default_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Record without an agent, and end the default run when the test is over."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    yield
    if pf.is_initialized():
        pf.shutdown()


def values(given: Any) -> dict[str, Any]:
    """Return what is recorded of a configuration."""
    return dict(RunConfig().with_values(given).values)


def loop() -> dict[str, Any]:
    """Return a mapping that contains itself."""
    given: dict[str, Any] = {}
    given["self"] = given
    return given


def test_nested_values_have_keys_with_dots():
    """Mappings are flattened, and lists of them; a list of plain values is a value."""
    given = {"lr": 0.1, "model": {"name": "small", "layers": {"n": 2}}, "betas": (0.9, 0.99), "stages": [{"lr": 1}, {}]}
    assert values(given) == {
        "lr": 0.1,
        "model.name": "small",
        "model.layers.n": 2,
        "betas": [0.9, 0.99],
        "stages.0.lr": 1,
    }


def test_what_is_no_json_but_means_a_value_is_taken():
    """Paths, scalars of NumPy, keys that are numbers, and what vars() makes of arguments. None is no value."""
    given = vars(argparse.Namespace(data=Path("/data"), lr=np.float32(0.5), seed=np.int64(7), warmup=None))
    assert values(given | {1: True}) == {"data": "/data", "lr": 0.5, "seed": 7, "1": True}


@pytest.mark.parametrize(
    "key",
    ["password", "DB_PASSWORD", "dbPassword", "passwd", "hub_token", "token", "accesstoken", "API_KEY", "apiKey",
     "api_keys", "wandb_api_key", "aws_secret_access_key", "client_secret", "credentials", "ssh_key", "auth",
     "Authorization", "SENTRY_DSN", "private-key", "HF_TOKEN"],
)  # fmt: skip
def test_secrets_are_masked_by_their_names(key: str):
    """Whatever is in them, at any depth."""
    secret = values({key: "s3cret", "model": {key: {"user": "me", "n": 1234}}, "list": [{key: ["s3cret"]}]})
    assert set(secret.values()) == {"***"}
    assert len(secret) == 4


@pytest.mark.parametrize(
    "key",
    ["max_tokens", "tokenizer", "eos_token", "pad_token_id", "num_tokens_seen", "author", "key", "monkey", "keys",
     "attention_key_dim", "compass", "authority_weight", "token_dim"],
)  # fmt: skip
def test_what_only_sounds_like_a_secret_is_not_masked(key: str):
    """Tokens and keys are words of the trade, too."""
    assert values({key: "plain"}) == {key: "plain"}


def test_whether_a_secret_is_used_is_none():
    """It is a setting as others."""
    assert values({"use_auth_token": True}) == {"use_auth_token": True}


def test_an_address_is_kept_without_its_password():
    """Under whatever name, and in lists."""
    given = {"storage": "postgresql://me:pw@db/optuna", "mirrors": ["https://me@a.example/x", "https://b.example/a@b"]}
    assert values(given) == {
        "storage": "postgresql://***@db/optuna",
        "mirrors": ["https://***@a.example/x", "https://b.example/a@b"],
    }


def test_long_text_is_cut():
    """It tells runs apart no better."""
    assert values({"prompt": "x" * 5000})["prompt"] == "x" * MAX_TEXT_CHARS + "…[truncated]"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (argparse.Namespace(lr=1), r"config is an object of type Namespace; give a dict .* as vars\(\) does"),
        ("lr=1", "config is an object of type str"),
        ([("lr", 1)], "config is an object of type list"),
        (
            {"model": {"head": object()}},
            r"config: the value of 'model\.head' is an object of type object; give a number",
        ),
        ({"lr": np.zeros(3)}, r"config: the value of 'lr', a ndarray, is not a single number"),
        ({("a", "b"): 1}, "config: a key is an object of type tuple; give text"),
        ({"k" * 300: 1}, "config: the key 'k+…' has 300 characters"),
        (loop(), "config: 'self.self.* nests deeper than 16, or contains itself"),
        (
            {str(n): n for n in range(MAX_VALUES + 1)},
            r"config has 1001 values of \d+ bytes; at most 1000 of 32768 bytes",
        ),
        ({str(n): "x" * 1000 for n in range(40)}, r"config has 40 values of 4\d{4} bytes; at most 1000 of 32768 bytes"),
    ],
)
def test_what_cannot_be_recorded_raises_and_begins_nothing(given: Any, shown: str):
    """At the call, with the key and the remedy."""
    with pytest.raises(pf.ConfigurationError, match=shown):
        pf.init(config=given)
    assert not pf.is_initialized()


@pytest.mark.parametrize("given", ["x" * 257, "two\nlines", 5])
def test_a_name_that_cannot_be_shown_raises(given: Any):
    """It is for people."""
    with pytest.raises(pf.ConfigurationError, match=r"the name of the run is .*; give text of at most 256 printable"):
        pf.init(name=given)
    assert not pf.is_initialized()


def test_the_configuration_is_the_first_record():
    """Whoever comes to the journal late finds it, and before anything else."""
    pf.init(config={"model": {"lr": 0.1}})
    pf.metric({"loss": 1})
    assert records_of(default_run())[0] == Config({"model.lr": 0.1})


def test_a_run_without_a_configuration_has_no_record_of_it():
    """Nor has one that is empty."""
    pf.init(config={})
    assert records_of(default_run()) == []


def test_what_is_added_later_is_recorded_with_all_before_once():
    """A value under the same key takes its place; what is there already is nothing new."""
    pf.init(config={"lr": 0.1, "seed": 1})
    for _ in range(2):
        pf.add_config({"lr": 0.2, "batch": {"size": 8}})
    assert recorded(default_run(), Config)[1:] == [Config({"lr": 0.2, "seed": 1, "batch.size": 8})]


def test_too_much_that_is_added_changes_nothing():
    """What was recorded stays."""
    pf.init(config={"lr": 0.1})
    with pytest.raises(pf.ConfigurationError, match="config has 1001 values"):
        pf.add_config({str(n): n for n in range(MAX_VALUES)})
    pf.add_config({"seed": 1})
    assert recorded(default_run(), Config)[-1] == Config({"lr": 0.1, "seed": 1})


def test_another_attempt_has_the_same_configuration():
    """Going back to an earlier step begins another journal."""
    pf.init(config={"lr": 0.1})
    run = default_run()
    pf.add_config({"seed": 1})
    for step in (1, 2, 1):
        with pf.train_step(step=step):
            pass
    assert (run.info.attempt, records_of(run)[0]) == (2, Config({"lr": 0.1, "seed": 1}))


def test_adding_after_the_end_does_nothing():
    """As other calls on a run that is over."""
    run = pf.TrainingRun()
    run.shutdown()
    run.add_config({"lr": 0.1})
    assert recorded(run, Config) == []


def test_adding_before_init_raises():
    """As all functions do."""
    with pytest.raises(pf.NotInitializedError):
        pf.add_config({"lr": 0.1})


def test_the_configuration_survives_the_loss_of_the_oldest_records(monkeypatch: pytest.MonkeyPatch):
    """The bound of the journal takes the first segment, and with it the first record."""
    monkeypatch.setenv("PERIFLOW_JOURNAL_MAX_BYTES", str(24 << 20))
    pf.init(config={"lr": 0.1})
    run = default_run()
    first = journal_of(run) / "00000001.segment"
    while first.exists():
        pf.metric({"text": "x" * 1_000_000})
    everything = read_all(journal_of(run))
    assert everything.lost > 0
    assert everything.records[0] == Config({"lr": 0.1})
    assert isinstance(everything.records[1], Metric)


def test_the_files_tell_runs_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """On the first span and as points; the name is of the resource, which every line has."""
    monkeypatch.setenv("PERIFLOW_AGENT", "thread")
    pf.init(1, tmp_path / "a.log", config={"lr": 0.1, "token": "s3cret"}, name="the first")
    assert pf.shutdown()
    spans, points = ((tmp_path / f"a.{signal}.jsonl").read_text("utf-8") for signal in ("traces", "metrics"))
    assert spans.count('"periflow.config.lr","value":{"doubleValue":0.1}') == 2  # start and end
    assert '"periflow.value","value":{"stringValue":"0.1"}' in points
    for line in (spans + points).splitlines():
        assert '"periflow.run.name","value":{"stringValue":"the first"}' in line
        assert "s3cret" not in line


WORK_THAT_IS_NONE = [
    ([8192], "work is [8192]; give a dict"),
    ({"tokens": 0}, "work['tokens'] is 0; give a number above 0"),
    ({"tokens": "many"}, "work['tokens'] is 'many'; give a number above 0"),
    ({"tokens": float("nan")}, "work['tokens'] is nan; give a number above 0"),
    ({"tokens": 10**400}, f"work['tokens'] is 1{'0' * 99}…; give a number above 0"),
    ({"flops": 1, "peak_flops": True}, "work['peak_flops'] is True; give a number above 0"),
    ({1: 2}, "a kind of work is 1; give text"),
    ({str(kind): 1 for kind in range(17)}, "give a dict of at most 16 numbers"),
]


@pytest.mark.parametrize(("work", "message"), WORK_THAT_IS_NONE)
def test_work_that_is_none(work: Any, message: str):
    """The error says what is wrong with it."""
    with pytest.raises(pf.ConfigurationError, match=re.escape(message)):
        pf.TrainingRun(work=work)
