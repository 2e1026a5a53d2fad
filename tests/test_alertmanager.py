"""Alerts reach people: from a training by Prometheus and Alertmanager to a webhook, Slack and a mail server."""

import json
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import yaml
from programs import Program, free_ports, program, wait_until
from rules import Rules
from stack import CONFIG, start_ranks
from training import agents, end, isolate
from typing_extensions import Self

FOLDER = CONFIG / "alertmanager"
SHIPPED = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())
FASTER = 60
"""A minute of rules is a second: also that after which a value that is not finite is told no more."""
RUN = "a/b <!channel> & more"
TRAINING = """
import os, time
import periflow_otel as pf
pf.init(total_train_steps=10**6)
for step in range(10**6):
    with pf.train_step():
        time.sleep(0.1)
    pf.metric({"loss": float("nan") if (step, os.environ["RANK"]) == (20, "1") else 1.0})
"""


def amtool(*arguments: str | Path) -> str:
    """Return what amtool says, which must be content."""
    command = [program("amtool"), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.strip()


class Receivers:
    """A webhook, which may be Slack's, and a mail server, and what they were told."""

    def __init__(self) -> None:
        """Listen."""
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.mails: list[str] = []
        told = self

        class Webhook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                told.posts.append((self.path, body))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Mail(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 here\r\n")
                for line in iter(self.rfile.readline, b""):
                    word = line[:4].upper().strip()
                    self.wfile.write({b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}.get(word, b"250 ok\r\n"))
                    if word == b"DATA":
                        told.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                        self.wfile.write(b"250 ok\r\n")

        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), Webhook),
            socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail),
        ]
        self.web, self.mail = (f"127.0.0.1:{each.server_address[1]}" for each in self._servers)

    def __enter__(self) -> Self:
        """Begin to answer."""
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def to_slack(self, text: str) -> dict[str, Any]:
        """Return the first message with a text in it, once it is there."""
        wait_until(lambda: any(text in each["text"] for each in self._attachments()), 60, f"Slack is told: {text}")
        return next(each for each in self._attachments() if text in each["text"])

    def to_webhook(self, alert: str, status: str) -> dict[str, Any]:
        """Return what was first told of an alert about the training, once it is there."""
        wait_until(lambda: self._alerts(alert, status), 60, f"the webhook is told that {alert} is {status}")
        return self._alerts(alert, status)[0]

    def _attachments(self) -> list[dict[str, Any]]:
        return [each for path, body in list(self.posts) if path == "/slack" for each in body["attachments"]]

    def _alerts(self, name: str, status: str) -> list[dict[str, Any]]:
        alerts = [each for path, body in list(self.posts) if path == "/webhook" for each in body["alerts"]]
        of_training = [each for each in alerts if each["labels"].get("periflow_run_id") == RUN]
        return [each for each in of_training if (each["labels"]["alertname"], each["status"]) == (name, status)]


class Alertmanager(Program):
    """Alertmanager with the configuration of the stack, in which everybody is told, at once."""

    def __init__(self, folder: Path, receivers: Receivers) -> None:
        """Start it as scripts/stack does."""
        shutil.copytree(FOLDER, folder / "config")
        (folder / "slack").write_text(f"http://{receivers.web}/slack")
        config = folder / "config" / "alertmanager.yml"
        config.write_text(yaml.safe_dump(told_at_once(folder / "slack", receivers)))
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        command = [
            *(program("alertmanager"), f"--config.file={config}", f"--storage.path={folder}/data"),
            *(f"--web.listen-address={self.address}", "--cluster.listen-address="),
        ]
        super().__init__(command, folder / "alertmanager.log", [port])

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that it knows."""
        return list(requests.get(f"http://{self.address}/api/v2/alerts", timeout=30).json())

    def post(self, *alerts: str, **labels: str) -> None:
        """Let alerts about something fire."""
        body = [{"labels": {"alertname": alert, **labels}} for alert in alerts]
        requests.post(f"http://{self.address}/api/v2/alerts", json=body, timeout=30).raise_for_status()


def told_at_once(slack: Path, receivers: Receivers) -> dict[str, Any]:
    """Return the configuration as somebody may have changed their copy, with one receiver that is all of them."""
    config = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())
    config["route"] |= {"receiver": "all", "group_wait": "1s", "group_interval": "1s"}
    everybody = {key: value for each in config["receivers"] for key, value in each.items() if key != "name"}
    everybody["slack_configs"][0]["api_url_file"] = str(slack)
    everybody["webhook_configs"][0]["url"] = f"http://{receivers.web}/webhook"
    mail = everybody["email_configs"][0]
    mail |= {"smarthost": receivers.mail, "require_tls": False}
    for name in ("auth_username", "auth_password_file"):
        del mail[name]
    config["receivers"].append({"name": "all", **everybody})
    return dict(config)


class Told(NamedTuple):
    """What is at work, and who is told."""

    receivers: Receivers
    alertmanager: Alertmanager


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Let a rank of a training have a value that is not finite, and Prometheus tell Alertmanager."""
    folder = tmp_path_factory.mktemp("alertmanager")
    with (
        pytest.MonkeyPatch.context() as patch,
        Receivers() as receivers,
        Alertmanager(folder, receivers) as alertmanager,
        Rules(folder, FASTER, alertmanager.address) as rules,
    ):
        isolate(patch, folder)
        processes = start_ranks(
            TRAINING,
            PERIFLOW_RUN_ID=RUN,
            OTEL_TRACES_EXPORTER="none",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{rules.otlp}/v1/metrics",
            OTEL_METRIC_EXPORT_INTERVAL="500",
        )
        try:
            yield Told(receivers, alertmanager)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for pid in agents(folder / "state"):
                end(pid)


def test_alertmanager_accepts_the_configuration():
    """Its own tool finds all receivers and templates whole."""
    assert "4 receivers" in amtool("check-config", FOLDER / "alertmanager.yml")


@pytest.mark.parametrize("labels", [["periflow_run_id=r", "periflow_rank=1"], ["instance=gateway"]])
def test_every_alert_goes_where_the_first_receiver_says(tmp_path: Path, labels: list[str]):
    """One name is all that is to be changed, for runs and Collectors."""
    shutil.copytree(FOLDER, tmp_path / "own")
    config = tmp_path / "own" / "alertmanager.yml"
    config.write_text(config.read_text().replace("receiver: nobody", "receiver: slack"))
    assert amtool("config", "routes", "test", f"--config.file={config}", *labels) == "slack"


def test_nobody_is_told_unless_somebody_wants_to():
    """As shipped, a message would go to addresses that are not there."""
    assert SHIPPED["route"]["receiver"] == "nobody"
    assert {"name": "nobody"} in SHIPPED["receivers"]


def test_every_alert_that_is_muted_is_one():
    """Names in the configuration are those of rules, so that none is forgotten when one is called otherwise."""
    rules = yaml.safe_load((CONFIG / "prometheus" / "alerts.yml").read_text())
    known = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    (rule,) = SHIPPED["inhibit_rules"]
    for matchers in (rule["source_matchers"], rule["target_matchers"]):
        assert set(matchers[0].removeprefix('alertname=~"').removesuffix('"').split("|")) <= known


def test_a_webhook_is_told_which_rank_of_which_run_and_what_to_do(told: Told):
    """As labels and annotations, which a program can read."""
    alert = told.receivers.to_webhook("PeriFlowValueNotFinite", "firing")
    labels = {name: alert["labels"][f"periflow_{name}"] for name in ("run_id", "rank", "key")}
    assert labels == {"run_id": RUN, "rank": "1", "key": "loss"}
    assert alert["annotations"]["runbook"].endswith("resume from the last checkpoint.")


def test_slack_is_told_the_same_and_rings_for_nobody(told: Told):
    """Its marks in the name of a run are text, and a click leads to the dashboard with that run."""
    attachment = told.receivers.to_slack("was NaN")
    assert attachment["title"].startswith("[")
    assert attachment["title"].endswith(f"] Run {RUN}")
    assert attachment["title_link"] == "http://127.0.0.1:3000/d/periflow-run?var-run=a%2Fb+%3C%21channel%3E+%26+more"
    assert "*loss of run a/b &lt;!channel&gt; &amp; more was NaN or infinite on rank 1*" in attachment["text"]
    assert "resume from the last checkpoint." in attachment["text"]
    assert "docs/runbooks.md#periflowvaluenotfinite" in attachment["text"]


def test_a_mail_has_the_same_as_plain_text(told: Told):
    """With the run in its subject."""
    wait_until(lambda: any("was NaN" in mail for mail in told.receivers.mails), 60, "a mail has come")
    mail = next(mail for mail in told.receivers.mails if "was NaN" in mail)
    assert f"Run {RUN}" in mail.partition("\r\n\r\n")[0]
    assert f"loss of run {RUN} was NaN or infinite on rank 1" in mail.replace("=\r\n", "")


def test_it_is_told_that_an_alert_is_over(told: Told):
    """That no value was NaN any more does not undo the one that was."""
    assert told.receivers.to_webhook("PeriFlowValueNotFinite", "resolved")["labels"]["periflow_rank"] == "1"
    over = told.receivers.to_slack("Not again since")["text"].partition("Not again since")[2]
    assert over.startswith(".\nDashboard: ")


def test_of_a_run_that_has_failed_it_is_not_told_that_it_is_behind(told: Told):
    """But that a value was not finite, which may be why, and what is wrong with another run."""
    behind = ("PeriFlowRankBehind", "PeriFlowRunStuck", "PeriFlowCheckpointOverdue")
    told.alertmanager.post(*behind, "PeriFlowRunFailed", "PeriFlowValueNotFinite", periflow_run_id="failed")
    told.alertmanager.post(*behind, periflow_run_id="another")
    told.alertmanager.post(*behind, periflow_run_id="failed", periflow_tenant="acme")

    def muted() -> set[tuple[str, ...]]:
        return {
            (each["labels"]["alertname"], each["labels"]["periflow_run_id"], each["labels"].get("periflow_tenant", ""))
            for each in told.alertmanager.alerts()
            if each["status"]["state"] == "suppressed"
        }

    wait_until(lambda: len(muted()) == len(behind), 60, "the others are muted")
    assert muted() == {(name, "failed", "") for name in behind}


def test_all_that_is_wrong_with_a_run_is_one_message_of_bounded_length(told: Told):
    """However many ranks it has: the first of them, and how many there are."""
    for rank in range(30):
        told.alertmanager.post("PeriFlowRankBehind", periflow_run_id="large", periflow_rank=str(rank))
    attachment = told.receivers.to_slack("There are 30 such alerts.")
    assert attachment["title"] == "[30] Run large"
    assert attachment["text"].count("Since ") == 20
