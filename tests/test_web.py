"""Pages are served to this machine alone, to whoever means it, and cannot be held up."""

import gzip
import itertools
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http import HTTPStatus
from pathlib import Path

import pytest
import requests
from programs import wait_until

from periflow_otel.web.hosts import Hosts
from periflow_otel.web.http import Request, Response, parse_request
from periflow_otel.web.server import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Server
from periflow_otel.web.site import HEADERS, PORTS_TRIED, Routes, Site

LONG = b"page " * 1000


def request(path: str = "/page", method: str = "GET", host: str | None = "127.0.0.1:9464", **headers: str) -> Request:
    """Return a request, as it comes from the wire."""
    fields = ({} if host is None else {"host": host}) | {
        name.replace("_", "-").lower(): each for name, each in headers.items()
    }
    return Request(method, path, {}, fields)


def routes(address: str = "127.0.0.1", *names: str) -> Routes:
    """Return a table with a page of each sort."""
    table = Routes(Hosts(address, names))
    table.add("/page", lambda _: Response(LONG))
    table.add("/public", lambda _: Response(b"public"), is_public=True)
    table.add("/runs/*", lambda asked: Response(asked.path.encode()))
    return table


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:9464", "LocalHost.", "127.0.0.1", "127.0.0.1:1", "127.8.8.8", "[::1]", "[::1]:9464",
        "training.example", "TRAINING.example:80",
    ],
)  # fmt: skip
def test_names_of_this_place_are_answered(host: str):
    """Loopback's names, with any port as through a tunnel, and those that the user has given."""
    assert routes("127.0.0.1", "training.example").answer(request(host=host)).status == HTTPStatus.OK


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", "", ":9464",
        "127.0.0.1@evil.example", "[evil.example]", "localhost:evil", "192.0.2.1", "127.0.0.1, evil.example", "[::1",
        "localhost evil.example", "localhost/", "xlocalhost", "2130706433", "127.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/page", "/public", "/runs/1", "/nowhere", "/"])
def test_foreign_names_are_refused(host: str, path: str):
    """A web page elsewhere that makes its own name lead here reads nothing, not even what there is."""
    answer = routes().answer(request(path, host=host))
    assert (answer.status, b"page" in answer.body or b"public" in answer.body) == (HTTPStatus.FORBIDDEN, False)


def test_program_that_names_nobody_is_answered():
    """A browser always says whom it means; HTTP/1.0 has clients that do not."""
    assert routes().answer(request(host=None)).status == HTTPStatus.OK


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/public", "node-7.cluster:9464", HTTPStatus.OK),
        ("/page", "node-7.cluster:9464", HTTPStatus.FORBIDDEN),
        ("/page", "10.1.2.3:9464", HTTPStatus.OK),
        ("/page", "localhost:9464", HTTPStatus.OK),
    ],
)
def test_place_that_is_opened_is_asked_by_other_names(path: str, host: str, status: HTTPStatus):
    """A Prometheus elsewhere knows the node by any name; pages are told to those who know its address."""
    assert routes("0.0.0.0").answer(request(path, host=host)).status == status  # noqa: S104  # it is what is tested


def test_address_of_another_interface_is_itself_alone():
    """Bound to one address, others are foreign."""
    hosts = Hosts("10.1.2.3")
    assert [hosts.includes(host) for host in ("10.1.2.3:80", "10.1.2.4:80", "localhost")] == [True, False, True]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "X"])
def test_nothing_can_be_written(method: str):
    """Every method but GET and HEAD is refused."""
    answer = routes().answer(request(method=method))
    assert (answer.status, answer.headers["Allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/page", HTTPStatus.OK),
        ("/page/", HTTPStatus.NOT_FOUND),
        ("/runs/a/b", HTTPStatus.OK),
        ("/runs/", HTTPStatus.OK),
        ("/runs", HTTPStatus.NOT_FOUND),
        ("/", HTTPStatus.NOT_FOUND),
        ("", HTTPStatus.NOT_FOUND),
        ("*", HTTPStatus.NOT_FOUND),
        ("/runs*", HTTPStatus.NOT_FOUND),
        ("http://localhost/page", HTTPStatus.NOT_FOUND),
    ],
)
def test_path_finds_its_page(path: str, status: HTTPStatus):
    """A path stands for itself, or with a star for all below it."""
    assert routes().answer(request(path)).status == status


def test_later_handler_replaces_an_earlier_one():
    """Who comes later knows better."""
    table = routes()
    table.add("/page", lambda _: Response(b"new"))
    assert table.answer(request()).body == b"new"


@pytest.mark.parametrize("path", ["/page", "/nowhere"])
def test_every_answer_is_closed_to_other_origins(path: str):
    """No other origin may read, run, sniff or remember what is served, and the page asks nobody else."""
    headers = routes().answer(request(path)).headers
    assert HEADERS.items() <= headers.items()
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not {"unsafe-inline", "unsafe-eval"} & set(headers["Content-Security-Policy"].replace("'", " ").split())


def test_page_that_cannot_be_made_is_an_error_that_says_nothing(caplog: pytest.LogCaptureFixture):
    """The reason is for the log alone."""
    table = routes()
    table.add("/page", lambda _: Response(str(1 / 0).encode()))
    answer = table.answer(request())
    assert (answer.status, b"division" in answer.body) == (HTTPStatus.INTERNAL_SERVER_ERROR, False)
    assert "The page /page could not be made" in caplog.text


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("GZIP, deflate, br", True),
        ("br;q=1, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("identity", False),
        ("x-gzip-not", False),
        ("", False),
    ],
)
def test_answer_is_compressed_when_asked(accepted: str, is_compressed: bool):  # noqa: FBT001  # a table
    """Who reads gzip gets it, and caches are told what it depends on."""
    answer = routes().answer(request(accept_encoding=accepted))
    assert (answer.headers.get("Content-Encoding") == "gzip") == is_compressed
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert (gzip.decompress(answer.body) if is_compressed else answer.body) == LONG


def test_short_answer_is_sent_as_it_is():
    """Nothing is gained in a packet."""
    assert "Content-Encoding" not in routes().answer(request("/public", accept_encoding="gzip")).headers


def test_query_and_path_are_decoded():
    """A handler sees what was meant."""
    asked = parse_request(b"GET /runs/a%20b?since=7&x=%26 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert asked is not None
    assert (asked.path, asked.query) == ("/runs/a b", {"since": "7", "x": "&"})


@pytest.fixture
def served() -> Iterator[Site]:
    """Return a site with a page, on a free port."""
    place = Site("127.0.0.1", 0)
    place.add("/page", lambda _: Response(LONG))
    yield place
    place.close()


def get(place: Site, path: str = "/page") -> requests.Response:
    """Return a page."""
    return requests.get(str(place.url(path)), timeout=5)


def taken_ports(count: int) -> tuple[int, ExitStack]:
    """Take consecutive ports; return the first, and what frees them.

    They are below those that a system gives to connections, of which there are many while tests run side by side.
    """
    for first in random.sample(range(20_000, 32_000), 50):
        stack = ExitStack()
        try:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            stack.close()
            continue
        return first, stack
    pytest.fail(f"no {count} free ports in a row")


def test_taken_port_gives_way_to_a_later_one(caplog: pytest.LogCaptureFixture):
    """A second job on the machine is served beside the first, which is no reason to worry."""
    caplog.set_level(logging.INFO)
    first, taken = taken_ports(2)
    with taken, closing(Site("127.0.0.1", first)) as place:
        port = int(place.address.rpartition(":")[2])
        assert first + 2 <= port < first + PORTS_TRIED
    assert caplog.messages == [f"Port {first} is taken; {port} is used instead"]
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_without_any_port_nothing_is_served(caplog: pytest.LogCaptureFixture):
    """When no port is free there is one warning."""
    first, others = taken_ports(PORTS_TRIED)
    with others:
        place = Site("127.0.0.1", first)
        place.add("/page", lambda _: Response(LONG))
        place.close()
    assert (place.is_served, place.address, place.url()) == (False, "", None)
    assert caplog.messages == [
        f"No page and no metrics are served on 127.0.0.1: ports {first} to {first + 15} are taken"
    ]


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid", "a..b"])
def test_host_of_another_machine_is_only_logged(caplog: pytest.LogCaptureFixture, host: str):
    """An address that cannot be listened on costs the page and no more."""
    assert Site(host, 0).url() is None
    assert len(caplog.messages) == 1


def test_address_beyond_the_machine_is_warned_of(caplog: pytest.LogCaptureFixture):
    """Whoever opens the page to other machines is told so, and the page is named as it is reached from here."""
    with closing(Site("0.0.0.0", 0)) as place:  # noqa: S104  # it is what is tested
        assert str(place.url()).startswith("http://127.0.0.1:")
    assert caplog.messages == ["Metrics are served on 0.0.0.0, where other machines may read them"]


def test_configured_host_is_answered():
    """A name in the hosts file of this machine is as good as the address that it stands for."""
    with closing(Site("localhost", 0)) as place:
        place.add("/page", lambda _: Response(LONG))
        assert get(place).status_code == HTTPStatus.OK


def test_closing_frees_port_and_thread(served: Site):
    """After ``close`` nothing of the server is left, even in the middle of a request."""
    with closing(Site("127.0.0.1", 0)):
        pass  # what the first one loads is open for good
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    place = Site("127.0.0.1", 0)
    with connect(place) as client:
        client.sendall(b"GET /met")
        assert get(place, "/").status_code == HTTPStatus.NOT_FOUND
        place.close()
        place.close()
        assert client.recv(100) == b""
    served.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "periflow-web"]
    assert len(list(Path("/proc/self/fd").iterdir())) < descriptors


def connect(place: Site) -> socket.socket:
    """Return a connection."""
    host, _, port = place.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def ask(place: Site, request_bytes: bytes) -> bytes:
    """Send bytes and return everything that comes back."""
    with connect(place) as client:
        client.sendall(request_bytes)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200 OK"),
        (b"GET /page?a=b HTTP/1.0\r\nHost: 127.0.0.1:80\r\n\r\n", b"200 OK"),
        (b"GET /page HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET /page HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET /page HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403 Forbidden"),
        (b"GET /page HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n", b"403 Forbidden"),
        (b"GET /page HTTP/1.1\r\nHost: evil.example\x85Host: localhost\r\n\r\n", b"403 Forbidden"),
        (b"GET /page HTTP/1.1\r\nHost: localhost\nHost: evil.example\r\n\r\n", b"400 Bad Request"),
        (b"GET /page HTTP/1.1\r\nHost : localhost\r\n\r\n", b"400 Bad Request"),
        (b"GET /page HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", b"400 Bad Request"),
        (b"GET http://evil.example/page HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404 Not Found"),
        (b"GET /../etc/passwd HTTP/1.0\r\n\r\n", b"404 Not Found"),
        (b"GET /page HTTP/1.15\r\nHost: localhost\r\n\r\n", b"400 Bad Request"),
        (b"POST /page HTTP/1.0\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /page\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\xff\r\n\r\n", b"400 Bad Request"),
        (b"GET /page HTTP/1.0\r\nX: " + b"x" * MAX_REQUEST_BYTES, b"431 Request Header Fields Too Large"),
    ],
)
def test_request_gets_its_status(served: Site, request_bytes: bytes, status: bytes):
    """Only GET and HEAD for this place are served, and nonsense is answered."""
    assert ask(served, request_bytes).startswith(b"HTTP/1.1 " + status + b"\r\n")


def test_head_has_no_body(served: Site):
    """HEAD tells the length of the page and sends none of it."""
    head, _, body = ask(served, b"HEAD /page HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert (body, f"Content-Length: {len(LONG)}".encode() in head) == (b"", True)


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0", "\x85"])
def test_handler_cannot_add_lines_to_the_answer(served: Site, end: str):
    """A content type that came from a client does not end its line: there is an error instead."""
    served.add("/page", lambda _: Response(LONG, f"text/plain{end}Evil: 1"))
    answer = ask(served, b"GET /page HTTP/1.0\r\n\r\n")
    assert (b"500 Internal Server Error" in answer, b"Evil" in answer) == (True, False)


def test_half_open_clients_hold_nothing_up(served: Site):
    """With 200 clients that never finish their request, a page is there at once and few descriptors are used."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(connect(served))
            client.sendall(b"GET /page HTTP/1.1\r\n")
        for _ in range(20):
            started = time.monotonic()
            assert get(served).status_code == HTTPStatus.OK
            assert time.monotonic() - started < 0.5
        used_here = len(list(Path("/proc/self/fd").iterdir())) - before - 200
        assert used_here <= MAX_CONNECTIONS


def test_clients_that_take_no_answer_hold_nothing_up(served: Site):
    """More than there is room for, who ask for much and read nothing, keep nobody else from a page."""
    much = b"x" * (8 << 20)
    served.add("/much", lambda _: Response(much))
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 4):
            stack.enter_context(connect(served)).sendall(b"GET /much HTTP/1.0\r\n\r\n")
        for _ in itertools.repeat(None, 5):
            assert get(served).content == LONG


def is_cut_off(client: socket.socket) -> bool:
    """Tell whether a client that sends one more byte has been left."""
    try:
        client.sendall(b"G")
        return client.recv(100) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_slow_client_is_cut_off():
    """A client that sends byte after byte does not stay longer than its time."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0)
    with (
        closing(Server(listener, lambda _: Response(), timeout_s=0.2)),
        socket.create_connection(listener.getsockname()) as client,
    ):
        client.settimeout(0.02)
        wait_until(lambda: is_cut_off(client), what="the client is cut off")
