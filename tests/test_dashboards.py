"""The dashboards ask for what is really emitted, and get it from a real Prometheus and a real Jaeger."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import yaml
from clients import attributes
from gpus import H100, FakeGpus, build
from programs import program, wait_until
from stack import CONFIG, ROOT, Stack, start_ranks, wait_for_ranks, wait_for_run

FOLDER = CONFIG / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
RULES = [
    rule
    for name in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((CONFIG / "prometheus" / name).read_text())["groups"]
    for rule in group["rules"]
]
TRAINING = """
import os, sys, time
import periflow_otel as pf
rank, first, last = int(os.environ["RANK"]), int(sys.argv[1]), int(sys.argv[2])
work = {"tokens": 100, "flops": 1e9, "peak_flops": 1e12}
pf.init(total_train_steps=100, initial_step=first - 1, local_log_name="train.log", work=work)
for step in range(first, last + 1):
    with pf.span("data"):
        time.sleep(0.001)
    with pf.train_step():
        time.sleep(1.5 if step == 37 else 0.01 + 0.02 * rank)
    pf.metric({"loss": float("nan") if step == 42 else 1 / step, "lr": 0.1, "grad.norm": 1})
    if step % 20 == 0:
        pf.upload_checkpoint()
if last < 100:
    os._exit(1)
time.sleep(4)  # the agent looks at the processes a few times
"""


class Filled(NamedTuple):
    """A stack with a run in it that was killed once."""

    stack: Stack
    began: float
    """Unix seconds."""
    variables: Mapping[str, str]
    """What the choices of the dashboards stand at."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Train two ranks that die after 30 steps, start them again from step 21, and let them finish."""
    folder = tmp_path_factory.mktemp("dashboards")
    with pytest.MonkeyPatch.context() as patch, Stack(folder / "stack") as stack:
        (folder / "run").mkdir()
        patch.chdir(folder / "run")
        began = time.time()
        environ = {"PERIFLOW_RUN_ID": "filled", "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoint}
        environ["OTEL_RESOURCE_ATTRIBUTES"] = "periflow.tenant=acme"  # as a gateway stamps it
        environ["OTEL_METRIC_EXPORT_INTERVAL"] = "500"  # several points of each instrument, in a short run
        environ |= {"PERIFLOW_MACHINE_INTERVAL": "0.2", **_two_gpus(folder)}
        assert [rank.wait(120) for rank in start_ranks(TRAINING, 1, 30, **environ)] == [1, 1]
        wait_for_run(stack.jaeger)
        wait_for_ranks(start_ranks(TRAINING, 21, 100, **environ))
        wait_for_run(stack.jaeger, 4)
        _say_who_is_stuck(stack.endpoint)
        ended = time.time()
        wait_until(
            lambda: min(stack.prometheus.last_evaluations()) > ended, 60, "all rules have seen the end of the run"
        )
        # Prometheus writes alerts down from its second evaluation on.
        wait_until(lambda: stack.prometheus.query("ALERTS"), 60, "an alert is there")
        yield Filled(
            stack,
            began,
            {
                "tenant": "(acme)",
                "run": "filled",
                "rank": "(0|1)",
                "metric": r"grad\\.norm",  # as Grafana writes a value that may be one of several
                "service": "periflow-training",
                "slow": "1",
                "__rate_interval": "2m",
                "__interval": "5s",
                "__range": "15m",
            },
        )


def _say_who_is_stuck(endpoint: str) -> None:
    """Say it as an agent would: a rank that really is stuck would make the run a long one."""
    said = {"periflow.stuck.ranks": "1", "periflow.stuck.place": "train.py:10 (load)", "periflow.node.rank": "0"}
    point = {"timeUnixNano": str(time.time_ns()), "asDouble": 30.0, "attributes": attributes(said)}
    metric = {"name": "periflow.stuck.time", "unit": "s", "gauge": {"dataPoints": [point]}}
    resource = {"attributes": attributes({"periflow.run.id": "filled", "periflow.tenant": "acme"})}
    body = {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]}
    requests.post(f"{endpoint}/v1/metrics", json=body, timeout=60).raise_for_status()


def _two_gpus(folder: Path) -> dict[str, str]:
    """Return variables with which agents find a GPU for each rank."""
    gpus = FakeGpus(folder / "gpus")
    for number in range(2):
        gpus.add(number, **H100 | {"uuid": f"GPU-{number}"})
    return {"LD_LIBRARY_PATH": str(build(folder)), "NVML_STUB": str(folder / "gpus"), "CUDA_VISIBLE_DEVICES": "0,1"}


def test_dashboards_are_what_the_names_make_of_them(tmp_path: Path):
    """The files are those that scripts/dashboards writes now."""
    code = f"import runpy; from pathlib import Path; module = runpy.run_path({str(ROOT / 'scripts' / 'dashboards')!r})"
    write = "module['main'].__globals__['FOLDER'] = Path('.'); module['main']()"
    subprocess.run([sys.executable, "-c", f"{code}; {write}"], cwd=tmp_path, check=True, timeout=60)
    assert {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")} == DASHBOARDS


def test_dashboards_have_the_types_of_grafana():
    """The compiler finds nothing wrong with them, by the types that Grafana publishes."""
    program("npm")
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_dashboards"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str):
    """Every panel is within the 24 columns, and no two share a cell."""
    cells = [
        (x, y)
        for panel in DASHBOARDS[name]["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    assert len({panel["id"] for panel in DASHBOARDS[name]["panels"]}) == len(DASHBOARDS[name]["panels"])


@pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=lambda each: each.get("title"))
def test_a_panel_explains_itself(dashboard: dict[str, Any], panel: dict[str, Any]):
    """It has a unit, a description, something to say without data, and data sources that are provisioned."""
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert panel["description"].endswith(".")
    assert defaults["noValue"]
    provisioned = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "periflow.yaml").read_text())["datasources"]
    known = [{"type": each["type"], "uid": each["uid"]} for each in provisioned]
    used = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(each in known for each in used)
    names = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([panel["targets"], panel["title"]]))) <= names


@pytest.mark.parametrize(
    ("dashboard", "panel"),
    [each for each in PANELS if each[1]["datasource"]["type"] == "prometheus"],
    ids=lambda each: each.get("title"),
)
def test_a_panel_has_data(filled: Filled, dashboard: dict[str, Any], panel: dict[str, Any]):
    """Each of its queries returns a series for each thing that its legend tells apart."""
    assert dashboard["templating"]["list"]
    for target in panel["targets"]:
        expr = _put_in(target["expr"], filled.variables).replace(") > 16)", ") > 1)")  # as if two ranks were many
        if target["range"]:
            found = filled.stack.prometheus.query_range(expr, filled.began, time.time())
        else:
            found = filled.stack.prometheus.query(expr)
        assert found, expr
        labels = [*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])]
        assert all(label in series.labels for series in found for label in labels)
        assert any(value == value for series in found for _, value in series.samples)  # noqa: PLR0124  # not NaN
        if "periflow_rank" in labels:
            assert {series.labels["periflow_rank"] for series in found} == {"0", "1"}
        if target.get("exemplar"):
            assert filled.stack.prometheus.exemplars(expr)


def test_slow_steps_are_found(filled: Filled):
    """The table of slow steps has the one slow step of the run, with all its ranks; it shows the slowest first."""
    ((_, panel),) = [each for each in PANELS if each[1]["datasource"]["type"] == "jaeger"]
    ((sort,),) = [each["options"]["sort"] for each in panel["transformations"]]
    assert sort == {"field": "Duration", "desc": True}
    (trace,) = _search(filled, panel["targets"][0])
    assert len(trace["spans"]) == 2
    assert {
        tag["value"] for span in trace["spans"] for tag in span["tags"] if tag["key"] == "periflow.step.number"
    } == {37}


def test_the_number_of_a_step_leads_to_its_trace(filled: Filled):
    """What a click on a step searches for is the trace of that step, in every attempt that did it."""
    links = [link["url"] for _, panel in PANELS for link in _links(panel) if "panes=" in link["url"]]
    assert len(links) == 2
    for url in links:
        panes = json.loads(re.search("panes=(.*)$", url).group(1))  # type: ignore[union-attr]  # it is there
        search = panes["trace"]["queries"][0]
        search["tags"] = search["tags"].replace("${__value.numeric}", "25")
        assert [len(trace["spans"]) for trace in _search(filled, search)] == [2, 2]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_choices_offer_what_is_there(filled: Filled, name: str):
    """Each variable finds the run, its ranks, its metrics and its service."""
    expected = {
        "tenant": ["acme"],
        "run": ["filled"],
        "rank": ["0", "1"],
        "metric": ["grad.norm", "loss", "lr"],
        "service": ["periflow/periflow-training"],
    }
    for variable in DASHBOARDS[name]["templating"]["list"]:
        query = _put_in(variable["query"]["query"], filled.variables)
        if variable["name"] != "slow":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
            url = f"{filled.stack.prometheus.url}/api/v1/label/{label}/values"
            answer = requests.get(url, {"match[]": selector}, timeout=30).json()["data"]
            assert answer == expected[variable["name"]]


def test_slow_is_what_takes_twice_as_long_as_most(filled: Filled):
    """Read out of the text that Grafana makes of the answer; a second, while nothing is known."""
    (variable,) = [each for each in DASHBOARDS["periflow-run"]["templating"]["list"] if each["name"] == "slow"]
    expr = re.fullmatch(r"query_result\((.+)\)", variable["query"]["query"]).group(1)  # type: ignore[union-attr]
    (median,) = filled.stack.prometheus.query('periflow:step_seconds:median{periflow_run_id="filled"}')
    for run, expected in (("filled", 2 * median.samples[0][1]), ("none", 1)):
        (series,) = filled.stack.prometheus.query(_put_in(expr, {"run": run}))
        labels = ",".join(f'{key}="{value}"' for key, value in series.labels.items())
        shown = f"{{{labels}}} {series.samples[0][1]} {series.samples[0][0]}"
        found = re.search(variable["regex"].strip("/"), shown)
        assert found
        assert float(found.group(1)) == pytest.approx(expected)


def test_marks_are_where_something_happened(filled: Filled):
    """Checkpoints and values that are not finite are marked on the curves."""
    for annotation in DASHBOARDS["periflow-run"]["annotations"]["list"]:
        expr = _put_in(annotation["target"]["expr"], filled.variables)
        found = filled.stack.prometheus.query_range(expr, filled.began, time.time())
        assert found, expr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_can_be_evaluated(filled: Filled, rule: dict[str, str]):
    """Prometheus has evaluated it without complaint; recording rules have something to record."""
    name = rule.get("record") or rule["alert"]
    (state,) = [each for each in filled.stack.prometheus.rules() if each["name"] == name]
    assert (state["health"], state.get("lastError", "")) == ("ok", "")
    if "record" in rule:
        assert filled.stack.prometheus.query(rule["record"])


def test_the_alert_for_a_value_that_is_not_finite_fires_for_the_run(filled: Filled):
    """The NaN of step 42 has raised it, on both ranks."""
    alerts = requests.get(f"{filled.stack.prometheus.url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
    found = [each["labels"] for each in alerts if each["labels"]["alertname"] == "PeriFlowValueNotFinite"]
    assert sorted((labels["periflow_key"], labels["periflow_rank"]) for labels in found) == [
        ("loss", "0"),
        ("loss", "1"),
    ]


def _put_in(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match.group(1)], text)


def _links(panel: dict[str, Any]) -> list[dict[str, Any]]:
    config = panel["fieldConfig"]
    overrides = [each for override in config["overrides"] for each in override["properties"] if each["id"] == "links"]
    return [*config["defaults"].get("links", []), *(link for each in overrides for link in each["value"])]


def _search(filled: Filled, search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ask Jaeger as its data source in Grafana does."""
    search = {
        key: _put_in(value, filled.variables) if isinstance(value, str) else value for key, value in search.items()
    }
    tags = dict(each.split("=", 1) for each in shlex.split(search["tags"]))
    parameters = {
        "service": search["service"],
        "operation": search["operation"],
        "tags": json.dumps(tags),
        "limit": search["limit"],
        "start": int(filled.began * 1e6),
        "end": int(time.time() * 1e6),
        **({"minDuration": search["minDuration"]} if "minDuration" in search else {}),
    }
    answer = requests.get(f"{filled.stack.jaeger.url}/api/traces", parameters, timeout=30)
    answer.raise_for_status()
    return list(answer.json()["data"])
