"""What the tiers do with bursts, slow webhooks, short memory and renewed credentials."""

import shutil
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from certificates import Authority
from clients import Client, gauge, span
from programs import Collector, Program, free_ports, is_listening, program, wait_until
from tiers import Issuer, Tiers, command

UPLOAD = "periflow.checkpoint.upload"
KEEP_ALL = {"KEPT_PERCENT": "100", "SAMPLING_WAIT": "1s"}


def stores(store: Collector) -> tuple[str, str]:
    """Return where metrics and traces go."""
    return store.http_endpoint, store.grpc_endpoint.removeprefix("http://")


class Webhook(ThreadingHTTPServer):
    """Answers when it is told to, and knows how often it was called."""

    request_queue_size, daemon_threads = 512, True

    def __init__(self) -> None:
        """Start it."""
        self.calls: list[bytes] = []
        self.may_answer = Event()
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)
        Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.calls.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.may_answer.wait(60)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_slow_webhook_delays_uploads_alone(tmp_path: Path):
    """Steps get through while it has not answered, and all ranks that save at once are one call each."""
    with Webhook() as webhook, Collector(tmp_path / "store") as store:
        url = f"http://127.0.0.1:{webhook.server_port}"
        with Tiers.started(tmp_path / "tiers", *stores(store), **KEEP_ALL, CHECKPOINT_WEBHOOK=url) as tiers:
            client = Client(tiers, tenant="a")
            ranks = [span(7, n, events=[(UPLOAD, {"periflow.checkpoint.id": f"run/1/9/{n}"})]) for n in range(1, 101)]
            client.send_spans(*ranks, resource={"periflow.run.id": "run"}).raise_for_status()
            wait_until(lambda: webhook.calls, 30, "the webhook is called")
            client.send_spans(span(8, 1), resource={"periflow.run.id": "run"}).raise_for_status()
            wait_until(lambda: len(store.spans()) == 101, 30, "all steps are stored")
            assert len(webhook.calls) < 100
            webhook.may_answer.set()
            wait_until(lambda: len(webhook.calls) > 99, 60, "all uploads have come")
            wait_until(lambda: max(steps_counted(store)) >= 101, 30, "all steps are counted")
        webhook.shutdown()
    assert len(set(webhook.calls)) == len(webhook.calls) == 100
    assert max(steps_counted(store)) == 101


def steps_counted(store: Collector) -> list[float]:
    """Return how many steps the gateway has told of, each time that it did."""
    return [0, *(point.value for point in store.points("periflow.gateway.calls"))]


def test_an_upload_that_was_refused_can_be_sent_again(tmp_path: Path):
    """To a webhook that fails an upload is lost, but for the file in which all of them are."""
    with Webhook() as webhook, Collector(tmp_path / "store") as store:
        url, webhook.status = f"http://127.0.0.1:{webhook.server_port}", 500
        webhook.may_answer.set()
        with Tiers.started(tmp_path / "tiers", *stores(store), **KEEP_ALL, CHECKPOINT_WEBHOOK=url) as tiers:
            ranks = [span(7, n, events=[(UPLOAD, {"periflow.checkpoint.id": f"run/1/9/{n}"})]) for n in (1, 2)]
            Client(tiers, tenant="a").send_spans(*ranks, resource={"periflow.run.id": "run"}).raise_for_status()
            wait_until(lambda: len(webhook.calls) == 2, 30, "the webhook has refused them")
            tiers.uploads.stop()
            refused, webhook.status = set(webhook.calls), 200
            webhook.calls.clear()
            with tiers.resending():
                wait_until(lambda: len(webhook.calls) >= 2, 30, "it is asked again")
        webhook.shutdown()
    assert sorted(webhook.calls) == sorted(refused)


def test_a_step_of_very_many_ranks_is_stored(tmp_path: Path):
    """Though its spans are more than a store takes in one request."""
    with Collector(tmp_path / "store") as store, Tiers.started(tmp_path / "tiers", *stores(store), **KEEP_ALL) as tiers:
        client, text = Client(tiers, tenant="a"), "x" * 1500
        for first in range(1, 4001, 1000):
            spans = [span(0xABC, n, text=text) for n in range(first, first + 1000)]
            client.send_spans(*spans, resource={"periflow.run.id": "run"}).raise_for_status()
        wait_until(lambda: len(store.spans()) >= 4000, 60, "all are stored")
        assert len({each.span_id for each in store.spans()}) == 4000


def test_a_sampler_without_memory_leaves_it_in_kafka(tmp_path: Path):
    """What it refuses comes once it has room."""
    (port,) = free_ports(1)
    short = tmp_path / "short.yaml"
    limits = "limit_percentage: 0, spike_limit_percentage: 0, limit_mib: 4, spike_limit_mib: 1"
    short.write_text(f"processors: {{memory_limiter: {{check_interval: 1s, {limits}}}}}\n")
    broker = [program("kafka-dev"), "-port", str(port), "-topics", "otlp_spans:2"]
    with Program(broker, tmp_path / "kafka.log", [port]), Collector(tmp_path / "store") as store:
        kafka = f"127.0.0.1:{port}"
        with Tiers.started(tmp_path / "tiers", *stores(store), kafka=kafka, **KEEP_ALL) as tiers:
            commands = [sampler.restart("--config", str(short)) for sampler in tiers.samplers]
            client = Client(tiers, tenant="a")
            wait_until(lambda: refuses(client, tiers), 60, "samplers refuse")
            sent = {span_id for span_id in range(1000, 1050) if send_one(client, span_id)}
            for sampler, healthy in zip(tiers.samplers, commands, strict=True):
                sampler.restart(command=healthy)
            wait_until(lambda: sent <= {each.span_id for each in store.spans()}, 60, "all that was sent is stored")


def test_a_step_with_many_phases_goes_through_kafka(tmp_path: Path):
    """Though what one request has of it is more than a producer takes by default: it is one message."""
    (port,) = free_ports(1)
    broker = [program("kafka-dev"), "-port", str(port), "-topics", "otlp_spans:2"]
    with Program(broker, tmp_path / "kafka.log", [port]), Collector(tmp_path / "store") as store:
        kafka = f"127.0.0.1:{port}"
        with Tiers.started(tmp_path / "tiers", *stores(store), kafka=kafka, **KEEP_ALL) as tiers:
            phases = [span(0xABC, n, name="forward", text="x" * 1500) for n in range(1, 2001)]
            Client(tiers, tenant="a").send_spans(*phases, resource={"periflow.run.id": "run"}).raise_for_status()
            wait_until(lambda: len(store.spans()) == len(phases), 60, "all are stored")


def send_one(client: Client, span_id: int) -> bool:
    """Send a trace of one span."""
    return client.send_spans(span(span_id, span_id), resource={"periflow.run.id": "run"}).ok


def refuses(client: Client, tiers: Tiers) -> bool:
    """Tell whether samplers say that they are short of memory, when they are given something."""
    send_one(client, time.time_ns() & 0xFFFFFFFF)
    return any("high memory usage" in sampler.log.read_text() for sampler in tiers.samplers)


def mount(folder: Path, **files: bytes) -> None:
    """Write files as Kubernetes does it: all of them are links into a folder that is swapped at a stroke."""
    data = folder / f"..{time.time_ns()}"
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    old = (folder / "..data").readlink() if (folder / "..data").is_symlink() else None
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").replace(folder / "..data")
    if old:
        shutil.rmtree(folder / old)


def served(url: str) -> bytes:
    """Return the certificate that a server shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection,
        context.wrap_socket(connection) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


def test_credentials_are_renewed_without_a_restart(tmp_path: Path):
    """Keys of tokens and the certificate, as often as Kubernetes swaps them."""
    issuers = [Issuer(tmp_path / name) for name in ("one", "two")]
    authority = Authority(tmp_path / "authority")
    pairs = [{"crt": cert.read_bytes(), "key": key.read_bytes()} for cert, key in map(authority.issue, ("one", "two"))]
    keys = [issuer.keys.read_bytes() for issuer in issuers]
    mount(tmp_path / "keys", keys=keys[0])
    mount(tmp_path / "tls", **pairs[0])
    mounted = {
        "TOKEN_KEYS": f"{tmp_path}/keys/keys",
        "GATEWAY_CERTIFICATE": f"{tmp_path}/tls/crt",
        "GATEWAY_KEY": f"{tmp_path}/tls/key",
        "GATEWAY_CA": str(authority.certificate),
        "CERTIFICATE_RELOAD": "1s",
    }
    with Collector(tmp_path / "store") as store, Tiers.started(tmp_path / "tiers", *stores(store), **mounted) as tiers:

        def status(issuer: Issuer) -> int:
            tiers.issuer = issuer
            return Client(tiers, tenant="a").send_metrics(gauge("sent", (1.0, {})), resource={}).status_code

        assert [status(issuer) for issuer in issuers] == [200, 401]
        before = served(tiers.url)
        mount(tmp_path / "tls", **pairs[1])
        for number in (1, 0, 1):
            mount(tmp_path / "keys", keys=keys[number])
            wait_until(lambda number=number: status(issuers[number]) == 200, 30, "the new key is known")
        wait_until(lambda: served(tiers.url) != before, 30, "the new certificate is shown")


def test_a_pod_may_have_an_address_of_ipv6(tmp_path: Path):
    """Everything binds to it as it does to one of IPv4."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    (port,) = free_ports(1)
    environ = {
        f"SAMPLING_{name}_PORT": str(each) for name, each in zip(("HEALTH", "METRICS"), free_ports(2), strict=True)
    }
    environ |= {"SAMPLING_BIND": "::1", "SAMPLING_GRPC_PORT": str(port)}
    with Program(command("sampling", environ=environ), tmp_path / "sampling.log", []) as sampling:
        ports = [int(each) for name, each in environ.items() if name.endswith("_PORT")]
        wait_until(lambda: all(map(listens, ports)), 30, "it listens")
        assert not any(map(is_listening, ports))
    assert "error" not in sampling.log.read_text()


def listens(port: int) -> bool:
    """Say whether somebody accepts connections on the loopback address of IPv6."""
    try:
        socket.create_connection(("::1", port), timeout=1).close()
    except OSError:
        return False
    return True
