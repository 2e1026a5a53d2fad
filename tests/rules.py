"""A Prometheus that takes OTLP and evaluates the rules of the stack each second."""

import re
from pathlib import Path

import requests
import yaml
from programs import Program, free_ports, program, wait_until
from stack import CONFIG, Prometheus
from typing_extensions import Self

_DURATION = re.compile(r"(?<![\w.:])((?:\d+h)?(?:\d+m)?(?:\d+s)?)(?![\w.:])")


class Rules(Prometheus):
    """Started with the configuration of the stack, of which every time is divided by ``faster``."""

    def __init__(self, folder: Path, faster: int = 1, alertmanager: str = "") -> None:
        """Start it, with its data in ``folder``; what fires goes to the address of an Alertmanager."""
        (port,) = free_ports(1)
        super().__init__(f"http://127.0.0.1:{port}")
        self.otlp = f"{self.url}/api/v1/otlp"
        config = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text())
        config["global"]["evaluation_interval"] = "1s"
        del config["scrape_configs"]
        targets = [alertmanager] if alertmanager else []
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": targets}]}]
        for name in config["rule_files"]:
            rules = (CONFIG / "prometheus" / name).read_text()
            (folder / name).write_text(divided(rules, faster) if faster > 1 else rules)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            *(program("prometheus"), f"--config.file={folder}/prometheus.yml", "--web.enable-otlp-receiver"),
            *(f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"),
        ]
        self._program = Program(command, folder / "prometheus.log", [port])
        wait_until(lambda: requests.get(f"{self.url}/-/ready", timeout=10).ok, 30, "Prometheus is ready")

    def __enter__(self) -> Self:
        """Return it running."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._program.stop()

    def firing(self) -> set[tuple[str, str, str]]:
        """Return alert, tenant and run of what fires now."""
        alerts = requests.get(f"{self.url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        return {
            (labels["alertname"], labels.get("periflow_tenant", ""), labels["periflow_run_id"])
            for labels in (each["labels"] for each in alerts if each["state"] == "firing")
        }

    def errors(self) -> list[str]:
        """Return what Prometheus has to say against the rules."""
        groups = requests.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]


def divided(rules: str, by: int) -> str:
    """Return rules with every duration in their expressions and ``for`` divided."""
    parsed = yaml.safe_load(rules)
    for rule in (rule for group in parsed["groups"] for rule in group["rules"]):
        for key in ("expr", "for"):
            if key in rule:
                rule[key] = _DURATION.sub(lambda match: _shorter(match.group(), by), rule[key])
    return yaml.safe_dump(parsed)


def _shorter(duration: str, by: int) -> str:
    if not duration:
        return ""
    units = {"h": 3600, "m": 60, "s": 1}
    seconds = sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))
    return f"{max(1000 * seconds // by, 1000)}ms"
