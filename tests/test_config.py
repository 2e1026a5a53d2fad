"""Every variable does what its specification says, and a value that cannot be used is refused with the remedy."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.config.endpoints import SIGNALS, OtlpSettings, Signal
from periflow_otel.config.environ import find_mode
from periflow_otel.config.export import ExportSettings
from periflow_otel.config.headers import Headers
from periflow_otel.config.paths import fallback_state_dir, find_state_dir
from periflow_otel.config.run import RunSettings
from periflow_otel.errors import ConfigurationError
from periflow_otel.ids import SAMPLE_NOTHING

BOTH = "OTEL_EXPORTER_OTLP_"
CANARY = "canary-5f0c"


def export(**environ: str) -> ExportSettings:
    """Resolve what the agent needs to know."""
    return ExportSettings.from_environ(environ)


def run(**environ: str) -> RunSettings:
    """Resolve what the training process needs to know."""
    return RunSettings.from_environ(environ)


def otlp(signal: Signal, **environ: str) -> OtlpSettings:
    """Resolve how a signal leaves over OTLP."""
    settings = export(PERIFLOW_ENABLED="1", **environ)
    found = settings.otlp[signal]
    assert found.signal == signal
    return found


def refusal(**environ: str) -> str:
    """Return what the error at ``init`` says."""
    with pytest.raises(ConfigurationError) as caught:
        run(**{"PERIFLOW_ENABLED": "1", **environ})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def complaint(caplog: pytest.LogCaptureFixture, name: str, value: str) -> str:
    """Return what is said of a value: an error, or for a standard variable a warning, and it is ignored."""
    if name.startswith("PERIFLOW_"):
        return refusal(**{name: value})
    assert run(PERIFLOW_ENABLED="1", **{name: value}) == run(PERIFLOW_ENABLED="1")
    assert export(PERIFLOW_ENABLED="1", **{name: value}) == export(PERIFLOW_ENABLED="1")
    return caplog.messages[0]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority that issues certificates."""
    return Authority(tmp_path / "authority")


# OTLP

SETTINGS = [
    ("ENDPOINT", "https://host:1", "endpoint", "https://host:1"),
    ("PROTOCOL", "http/json", "protocol", "http/json"),
    ("PROTOCOL", "http/protobuf", "protocol", "http/protobuf"),
    ("PROTOCOL", "GRPC", "protocol", "grpc"),
    ("HEADERS", "a=1,b=2", "headers", (("a", "1"), ("b", "2"))),
    ("COMPRESSION", "gzip", "compression", "gzip"),
    ("COMPRESSION", "none", "compression", "none"),
    ("TIMEOUT", "2500", "timeout_s", 2.5),
    ("TIMEOUT", "1", "timeout_s", 0.001),
]
DEFAULTS = {
    "endpoint": "http://localhost:4318/v1/traces",
    "protocol": "http/protobuf",
    "headers": (),
    "compression": "none",
    "timeout_s": 10.0,
    "certificate": None,
    "client_certificate": None,
    "client_key": None,
    "insecure": True,
    "proxy": None,
}


@pytest.mark.parametrize(("field", "value"), DEFAULTS.items())
def test_otlp_has_the_defaults_of_the_specification(field: str, value: Any):
    """Cloud mode with no variable at all sends to the agent of this host, over HTTP."""
    assert getattr(otlp("traces"), field) == value


@pytest.mark.parametrize(("setting", "text", "field", "value"), SETTINGS, ids=str)
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_setting_of_a_signal_is_its_own(signal: Signal, setting: str, text: str, field: str, value: Any):
    """A variable with the name of a signal decides for that signal, and for no other."""
    environ = {f"{BOTH}{signal.upper()}_{setting}": text}
    other: Signal = "metrics" if signal == "traces" else "traces"
    assert getattr(otlp(signal, **environ), field) == value
    assert otlp(other, **environ) == otlp(other)


@pytest.mark.parametrize(("setting", "text", "field", "value"), [row for row in SETTINGS if row[0] != "ENDPOINT"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_general_setting_is_that_of_both_signals(signal: Signal, setting: str, text: str, field: str, value: Any):
    """A variable without the name of a signal decides for both."""
    assert getattr(otlp(signal, **{BOTH + setting: text}), field) == value


@pytest.mark.parametrize(
    ("setting", "general", "own", "field", "value"),
    [
        ("ENDPOINT", "http://a", "http://b/c", "endpoint", "http://b/c"),
        ("PROTOCOL", "grpc", "http/json", "protocol", "http/json"),
        ("HEADERS", "a=1,b=2", "c=3", "headers", (("c", "3"),)),
        ("COMPRESSION", "gzip", "none", "compression", "none"),
        ("TIMEOUT", "1000", "2000", "timeout_s", 2.0),
    ],
)
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_setting_of_a_signal_comes_before_the_general_one(
    signal: Signal, setting: str, general: str, own: str, field: str, value: Any
):
    """Where both variables are set, that of the signal wins, whole."""
    environ = {BOTH + setting: general, f"{BOTH}{signal.upper()}_{setting}": own}
    assert getattr(otlp(signal, **environ), field) == value


@pytest.mark.parametrize("setting", ["ENDPOINT", "PROTOCOL", "HEADERS", "COMPRESSION", "TIMEOUT", "CERTIFICATE",
                                     "CLIENT_KEY", "CLIENT_CERTIFICATE", "INSECURE"])  # fmt: skip
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_setting_is_an_unset_one(setting: str, empty: str):
    """As the specification says, of general variables as of those of a signal."""
    assert otlp("traces", **{BOTH + setting: empty, f"{BOTH}TRACES_{setting}": empty}) == otlp("traces")


@pytest.mark.parametrize(
    ("general", "expected"),
    [
        ("http://host", "http://host/v1/traces"),
        ("http://host/", "http://host/v1/traces"),
        ("http://host:4318", "http://host:4318/v1/traces"),
        ("https://host/otlp", "https://host/otlp/v1/traces"),
        ("https://host/otlp/", "https://host/otlp/v1/traces"),
        ("https://host/otlp?tenant=7", "https://host/otlp/v1/traces?tenant=7"),
        ("HTTPS://host", "https://host/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_general_endpoint_gets_the_path_of_the_signal(general: str, expected: str):
    """The path of the signal is added to the one that is there."""
    assert otlp("traces", OTEL_EXPORTER_OTLP_ENDPOINT=general).endpoint == expected
    assert otlp("metrics", OTEL_EXPORTER_OTLP_ENDPOINT=general).endpoint == expected.replace("traces", "metrics")


@pytest.mark.parametrize("endpoint", ["http://host", "http://host/", "https://host:1/a/b/", "http://host/v1/other?a=b"])
def test_the_endpoint_of_a_signal_stays_as_it_is(endpoint: str):
    """It is the complete address."""
    assert otlp("traces", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    ("endpoint", "insecure", "expected", "is_plain"),
    [
        ("", "", "http://localhost:4317", True),
        ("http://host:4317", "", "http://host:4317", True),
        ("HTTP://host:4317", "", "http://host:4317", True),
        ("https://host:4317", "true", "https://host:4317", False),
        ("host:4317", "", "https://host:4317", False),
        ("host:4317", "false", "https://host:4317", False),
        ("host:4317", "true", "http://host:4317", True),
        ("host:4317", "TRUE", "http://host:4317", True),
        ("[::1]:4317", "true", "http://[::1]:4317", True),
    ],
)
def test_grpc_is_plain_by_scheme_or_by_insecure(endpoint: str, insecure: str, expected: str, is_plain: object):
    """The scheme of a gRPC endpoint decides; without one, ``INSECURE`` does."""
    settings = otlp(
        "traces",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_INSECURE=insecure,
    )
    assert (settings.endpoint, settings.insecure) == (expected, is_plain)


def test_insecure_may_be_said_of_one_signal():
    """The variable of the signal wins here too."""
    environ = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "host:1",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "false",
    }
    assert otlp("traces", **environ).insecure
    assert not otlp("metrics", **environ).insecure


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost",
        "localhost:4318",
        "file:///tmp/x",
        "ftp://host",
        "http://",
        "http://:4318",
        "http://host:",
        "http://host:0",
        "http://host:99999",
        "http://host:-1",
        "http://host:port",
        "http://ho st",
        "http://host/a b",
        "http://host/a\nb",
        "http://hö.st",
        "http://[::1",
        "http//host",
    ],
)
@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"])
def test_an_endpoint_that_cannot_be_reached_by_http_is_refused(name: str, endpoint: str):
    """The error names the variable, shows the value, and gives an endpoint that would do."""
    message = refusal(**{name: endpoint})
    assert f"{name} is {endpoint!r}" in message
    assert "http://localhost:4318" in message


@pytest.mark.parametrize(
    ("endpoint", "insecure", "expected", "is_plain"),
    [
        ("unix:///run/otel.sock", "", "unix:///run/otel.sock", True),
        ("unix:/run/otel.sock", "", "unix:/run/otel.sock", True),
        ("unix-abstract:otel", "", "unix-abstract:otel", True),
        ("dns:host:4317", "", "https://host:4317", False),
        ("dns:///host:4317", "true", "http://host:4317", True),
    ],
)
def test_other_targets_of_grpc_are_known(endpoint: str, insecure: str, expected: str, is_plain: object):
    """A socket of this machine needs no TLS; a name is one, with ``dns:`` or without."""
    settings = otlp(
        "traces", OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_INSECURE=insecure, https_proxy="http://proxy:3128",
    )  # fmt: skip
    assert (settings.endpoint, settings.insecure, settings.proxy is None) == (expected, is_plain, is_plain)


@pytest.mark.parametrize(
    "endpoint",
    [
        "host:0",
        "host:99999",
        "host name:1",
        "unix:",
        "unix:otel.sock",
        "ho\nst:1",
        "dns:",
        "dns://8.8.8.8/host:1",
        ":4317",
    ],
)
def test_an_endpoint_that_cannot_be_reached_by_grpc_is_refused(endpoint: str):
    """The same holds where no scheme is needed."""
    message = refusal(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is " in message


@pytest.mark.parametrize(
    "endpoint",
    [
        f"https://user:{CANARY}@host",
        f"https://{CANARY}@host:4318",
        f"https://user:{CANARY}/x@host",
        f"https://user:{CANARY}@host:99999",
        f"ftp://user:{CANARY}@host",
        f"https://user:{CANARY}@",
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_password_in_an_endpoint_is_refused_and_not_shown(protocol: str, endpoint: str):
    """It would otherwise be in every log line that names the endpoint."""
    message = refusal(OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in message
    assert CANARY not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("authorization=Bearer%20token", (("authorization", "Bearer token"),)),
        (" Api-Key = secret , b=2,", (("api-key", "secret"), ("b", "2"))),
        ("authorization=Basic dXNlcjpwYXNz==", (("authorization", "Basic dXNlcjpwYXNz=="),)),
        ("a=1%2C2", (("a", "1,2"),)),
        ("a=caf%C3%A9", (("a", "café"),)),
        ("a=", (("a", ""),)),
        ("a=1,b=2,A=3", (("a", "3"), ("b", "2"))),
    ],
)
def test_headers_are_read_as_the_specification_says(text: str, expected: tuple[tuple[str, str], ...]):
    """Pairs between commas, percent-decoded; names in lower case, as HTTP/2 wants them."""
    assert otlp("traces", OTEL_EXPORTER_OTLP_HEADERS=text).headers == expected


@pytest.mark.parametrize(
    "text",
    [
        f"{CANARY}",
        f"authorization: Bearer {CANARY}",
        f"a=1,Bearer {CANARY}==",
        f"={CANARY}",
        f"a b={CANARY}",
        f"authorization=Bearer {CANARY}%0Ax",
        f"authorization=Bearer%0D%0Ax: {CANARY}",
        f"authorization=%00{CANARY}",
        f"authorization={CANARY}€",
        f"authorization={CANARY}\nx",
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_header_that_cannot_be_sent_is_refused_and_not_shown(protocol: str, text: str):
    """The error names the variable and nothing of the value, which is often a token."""
    name = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
    message = refusal(**{"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, name: text})
    assert name in message
    assert "not shown" in message
    assert CANARY not in message


@pytest.mark.parametrize("text", [f"a={CANARY}%C3%A9", f"a={CANARY}%09x", f"a!={CANARY}", f"key-bin={CANARY}"])
def test_a_header_that_only_grpc_does_not_take_is_refused(text: str):
    """The rules of gRPC are stricter than those of HTTP, and every request would be refused."""
    assert otlp("traces", OTEL_EXPORTER_OTLP_HEADERS=text).headers
    message = refusal(OTEL_EXPORTER_OTLP_HEADERS=text, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert "OTEL_EXPORTER_OTLP_HEADERS" in message
    assert "http/protobuf" in message
    assert CANARY not in message


@pytest.mark.parametrize(
    "content", [None, "", " \n", CANARY, f"a b={CANARY}", f"a={CANARY}\0", "x" * (65 << 10), b"\xff=1"]
)
def test_a_file_of_headers_that_cannot_be_sent_is_refused_and_not_shown(content: str | bytes | None, tmp_path: Path):
    """At the start, like everything that decides who gets the data."""
    file = tmp_path / "headers"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(PERIFLOW_OTLP_HEADERS_FILE=str(file))
    assert "PERIFLOW_OTLP_HEADERS_FILE" in message
    assert CANARY not in message


def test_a_file_of_headers_tells_customers_apart_by_what_is_in_it(tmp_path: Path):
    """Two containers may have files of the same name, with tokens of two tenants."""
    file = tmp_path / "headers"
    file.write_text("authorization=a")
    settings = export(PERIFLOW_ENABLED="1", PERIFLOW_OTLP_HEADERS_FILE=str(file))
    destination = settings.destination()
    assert settings.sends_to(destination)
    file.write_text("authorization=b")
    assert not settings.sends_to(destination)


@pytest.mark.parametrize("show", [str, repr, "{}".format, "%s".__mod__])
def test_settings_never_show_a_header_or_a_proxy(show: Any):
    """Neither in an error with its variables nor in a log line."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://host",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={CANARY}",
        "https_proxy": f"http://user:{CANARY}@proxy:3128",
    }
    settings = otlp("traces", **environ)
    assert dict(settings.headers)["authorization"] == CANARY
    assert CANARY in str(settings.proxy)
    shown = [show([each]) for each in (settings, settings.headers, export(**environ), run(**environ))]
    assert CANARY not in "".join(shown)
    assert "authorization" in show([settings])


@given(st.lists(st.tuples(st.sampled_from(["a", "b-c"]), st.text(min_size=6)), max_size=3))
def test_headers_show_names_only(entries: list[tuple[str, str]]):
    """Whatever the values are."""
    names = ", ".join(name for name, _ in entries) or "none"
    assert repr(Headers(entries)) == f"<headers {names}>"


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "ten", "10s", "1e99"])
@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"])
def test_a_time_out_that_is_none_is_ignored(caplog: pytest.LogCaptureFixture, name: str, value: str):
    """A warning names the variable, shows the value, and says what is allowed."""
    message = complaint(caplog, name, value)
    assert message == f"{name} is {value!r}, which is ignored: give a number from 0 to 3600000"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc, http/protobuf, http/json"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc, http/protobuf, http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none, gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none, gzip"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true, false"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative, delta, lowmemory"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "explicit_bucket_histogram, base2_exponential_bucket_histogram",
        ),
        ("OTEL_SDK_DISABLED", "true, false"),
        ("OTEL_TRACES_SAMPLER", "always_on, always_off, traceidratio"),
        ("PERIFLOW_AGENT", "process, thread, off"),
        ("PERIFLOW_CONSOLE", "0, 1"),
    ],
)
@pytest.mark.parametrize("value", ["deflate", " 2 "])
def test_a_value_that_is_not_in_the_list_is_named(caplog: pytest.LogCaptureFixture, name: str, remedy: str, value: str):
    """With what is allowed."""
    message = complaint(caplog, name, value)
    assert message.startswith(f"{name} is {value.strip()!r}")
    assert f"give one of {remedy}" in message


@pytest.mark.parametrize("value", ["cumulative", "delta", "lowmemory", "DELTA"])
def test_temporality_is_the_one_asked_for(value: str):
    """In any case of letters."""
    assert export(OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=value).temporality == value.lower()
    assert export().temporality == "cumulative"


@pytest.mark.parametrize("value", ["explicit_bucket_histogram", "base2_exponential_bucket_histogram"])
def test_histograms_are_of_the_kind_asked_for(value: str):
    """Explicit bounds unless something else is said."""
    assert export(OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION=value).histogram == value
    assert export().histogram == "explicit_bucket_histogram"


# TLS


@pytest.mark.parametrize("infix", ["", "TRACES_"])
def test_a_path_of_a_file_is_made_absolute(infix: str, authority: Authority):
    """The agent may have another working directory than the script."""
    certificate, key = authority.issue("client")
    files = {"CERTIFICATE": authority.certificate, "CLIENT_CERTIFICATE": certificate, "CLIENT_KEY": key}
    settings = otlp("traces", **{f"{BOTH}{infix}{name}": os.path.relpath(path) for name, path in files.items()})
    assert settings.certificate == str(authority.certificate)
    assert (settings.client_certificate, settings.client_key) == (str(certificate), str(key))


def test_a_key_may_stand_in_the_file_of_its_certificate(authority: Authority, tmp_path: Path):
    """Then one variable is enough."""
    both = tmp_path / "both.pem"
    both.write_text("".join(path.read_text() for path in authority.issue("client")))
    settings = otlp("traces", OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(both))
    assert settings.client_certificate == settings.client_key == str(both)


@pytest.mark.parametrize("setting", ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"])
@pytest.mark.parametrize("infix", ["", "METRICS_"])
def test_a_file_that_is_missing_is_refused(setting: str, infix: str, tmp_path: Path):
    """The error names the variable and shows the path; a folder will not do either."""
    for path in (tmp_path / "missing.pem", tmp_path):
        message = refusal(**{f"{BOTH}{infix}{setting}": str(path)})
        assert f"{BOTH}{infix}{setting} is {str(path)!r}; give the path of a PEM file that exists" in message


@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
@pytest.mark.parametrize("setting", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
def test_a_file_that_is_no_certificate_is_refused(setting: str, content: str, tmp_path: Path):
    """At once, not at the first request hours later."""
    path = tmp_path / "file.pem"
    path.write_text(content)
    message = refusal(**{BOTH + setting: str(path)})
    assert f"{BOTH}{setting} is {str(path)!r}; that does not load" in message
    assert "give a PEM file of" in message


def test_a_key_without_a_certificate_is_refused(authority: Authority):
    """With gRPC, it would end the process."""
    _, key = authority.issue("client")
    message = refusal(OTEL_EXPORTER_OTLP_CLIENT_KEY=str(key))
    assert "set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE too" in message


def test_a_certificate_without_a_key_is_refused(authority: Authority):
    """With gRPC, it would end the process."""
    certificate, _ = authority.issue("client")
    message = refusal(OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(certificate))
    assert "OTEL_EXPORTER_OTLP_CLIENT_KEY" in message


def test_a_key_of_another_certificate_is_refused(authority: Authority):
    """The two belong together."""
    (certificate, _), (_, key) = authority.issue("client"), authority.issue("other")
    message = refusal(OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(certificate), OTEL_EXPORTER_OTLP_CLIENT_KEY=str(key))
    assert "KEY_VALUES_MISMATCH" in message


def test_an_encrypted_key_is_refused(authority: Authority, tmp_path: Path):
    """Nobody is there to be asked for its password."""
    certificate, key = authority.issue("client")
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:word", "-out", encrypted]
    subprocess.run(command, check=True)
    message = refusal(
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(certificate), OTEL_EXPORTER_OTLP_CLIENT_KEY=str(encrypted)
    )
    assert "not encrypted" in message


# Proxies


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:1"}, "http://lower:1"),
        ({"https_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://user:pass@proxy"}, "http://user:pass@proxy"),
        ({"http_proxy": "http://proxy:3128", "ALL_PROXY": "http://proxy:3128"}, None),
        ({"https_proxy": ""}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "example.com"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "a, .example.com"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "*"}, None),
        ({"https_proxy": "http://proxy:3128", "NO_PROXY": "otlp.example.com:4318"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "ample.com"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "otlp.example.com:1"}, "http://proxy:3128"),
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_proxy_of_a_tls_endpoint(protocol: str, environ: dict[str, str], expected: str | None):
    """``https_proxy`` and ``no_proxy`` decide, in lower case first."""
    environ = {
        **environ,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://otlp.example.com:4318",
    }
    assert otlp("traces", **environ).proxy == expected


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_plain_text_goes_direct(protocol: str):
    """The Collector of the host is not behind a proxy."""
    settings = otlp("traces", https_proxy="http://proxy:3128", OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert settings.proxy is None


@pytest.mark.parametrize("proxy", ["socks5://user:{}@proxy", "https://user:{}@proxy", "http://user:{}@proxy:99999"])
@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
def test_a_proxy_that_cannot_be_used_is_refused_and_not_shown(name: str, proxy: str):
    """The error names the variable that decides."""
    message = refusal(**{name: proxy.format(CANARY), "OTEL_EXPORTER_OTLP_ENDPOINT": "https://host"})
    assert message.startswith(f"{name} is not a URL such as http://host:3128")
    assert CANARY not in message


# Exporters


def test_local_mode_writes_files_and_serves_prometheus():
    """Nothing leaves the machine unless an endpoint is set."""
    settings = export()
    assert not settings.is_cloud
    assert settings.consumers() == ("metric_log", "otlp_file.traces", "otlp_file.metrics")
    assert settings.serves_prometheus
    assert settings.otlp == {}


def test_cloud_mode_exports_over_otlp():
    """And to nowhere else."""
    settings = export(PERIFLOW_ENABLED="1")
    assert settings.is_cloud
    assert settings.consumers() == ("otlp.traces", "otlp.metrics")
    assert not settings.serves_prometheus


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host"}, ("otlp.traces", "otlp.metrics")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://host"}, ("otlp.traces",)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://host"}, ("otlp.metrics",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host", "OTEL_TRACES_EXPORTER": "console"},
         ("sdk.console.traces", "otlp.metrics")),
        ({"OTEL_TRACES_EXPORTER": "otlp, console,otlp"}, ("otlp.traces", "sdk.console.traces")),
        ({"OTEL_METRICS_EXPORTER": "otlp_proto_http,prometheus"}, ("sdk.otlp_proto_http.metrics",)),
    ],
)  # fmt: skip
def test_local_mode_exports_what_is_asked_for(environ: dict[str, str], expected: tuple[str, ...]):
    """Over OTLP where an endpoint is set, and to the exporters that are named."""
    assert export(**environ).consumers() == ("metric_log", "otlp_file.traces", "otlp_file.metrics", *expected)


@pytest.mark.parametrize(("enabled", "consumers"), [("1", ()), ("0", ("metric_log",))])
def test_none_means_none(enabled: str, consumers: tuple[str, ...]):
    """No exporter, no file and no Prometheus endpoint; only the metric log of local mode stays."""
    none = {f"OTEL_{signal.upper()}_EXPORTER": "none" for signal in SIGNALS}
    settings = export(PERIFLOW_ENABLED=enabled, PERIFLOW_LOGS="debug", **none)
    assert settings.consumers() == consumers
    assert not settings.serves_prometheus
    assert settings.otlp == {}


def test_cloud_mode_serves_prometheus_where_asked():
    """Beside another exporter, or alone."""
    assert export(PERIFLOW_ENABLED="1", OTEL_METRICS_EXPORTER="prometheus").serves_prometheus
    assert export(PERIFLOW_ENABLED="1", OTEL_METRICS_EXPORTER="otlp,prometheus").serves_prometheus
    assert export(PERIFLOW_ENABLED="1", OTEL_METRICS_EXPORTER="prometheus").consumers() == ("otlp.traces",)


@pytest.mark.parametrize(
    ("value", "consumers"), [("OTLP", ("otlp.traces",)), ("otlp, OTlp", ("otlp.traces",)), ("None", ())]
)
def test_exporters_have_no_case(value: str, consumers: tuple[str, ...]):
    """The specification wants its own values taken in any."""
    settings = export(PERIFLOW_ENABLED="1", OTEL_TRACES_EXPORTER=value, OTEL_METRICS_EXPORTER="NONE")
    assert settings.consumers() == consumers


def test_no_time_out_is_an_hour():
    """0 is the standard's word for no limit; a connection that is dead is noticed some time."""
    settings = export(OTEL_EXPORTER_OTLP_ENDPOINT="http://x", OTEL_EXPORTER_OTLP_TIMEOUT="0")
    assert settings.otlp["traces"].timeout_s == 3600


@pytest.mark.parametrize(
    ("name", "value", "unknown"),
    [
        ("OTEL_TRACES_EXPORTER", "jaegerr", "jaegerr"),
        ("OTEL_TRACES_EXPORTER", "prometheus", "prometheus"),
        ("OTEL_METRICS_EXPORTER", "none,consol,console", "consol"),
    ],
)
def test_an_exporter_that_is_not_installed_is_refused(name: str, value: str, unknown: str):
    """At ``init``, with the names of those that are."""
    message = refusal(**{name: value})
    assert f"{name} is {unknown!r}; choose from console, none, otlp, otlp_proto_grpc, otlp_proto_http" in message
    assert "install the package" in message
    assert ("prometheus," in message) == (name == "OTEL_METRICS_EXPORTER")


def test_installed_exporters_are_looked_up_only_where_one_is_named():
    """That takes milliseconds of ``init``, which most runs need not spend; nor do they need proxies or TLS."""
    code = (
        "import sys; from periflow_otel.config.run import RunSettings; before = set(sys.modules)\n"
        "RunSettings.from_environ({'PERIFLOW_ENABLED': '1', 'OTEL_EXPORTER_OTLP_ENDPOINT': 'https://host'})\n"
        "print(*set(sys.modules) - before, *({'urllib.request', 'http.client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize(
    ("name", "text", "field", "value", "default"),
    [
        ("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0", "prometheus_host", "0.0.0.0", "127.0.0.1"),  # noqa: S104  # a value
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "0", "prometheus_port", 0, 9464),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "65535", "prometheus_port", 65535, 9464),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1500", "metric_interval_s", 1.5, 60.0),
        ("PERIFLOW_AGENT_LINGER", "0.5", "linger_s", 0.5, 60.0),
        ("PERIFLOW_CONSOLE", "1", "shows_console", True, False),
        ("PERIFLOW_CONSOLE", "0", "shows_console", False, False),
    ],
)
def test_the_other_settings_of_the_agent(name: str, text: str, field: str, value: Any, default: Any):
    """One variable each, with its default where it is unset or empty."""
    assert getattr(export(**{name: text}), field) == value
    assert getattr(export(), field) == getattr(export(**{name: " "}), field) == default


# The run


@pytest.mark.parametrize(
    ("name", "text", "field", "value", "default"),
    [
        ("OTEL_SDK_DISABLED", "true", "is_disabled", True, False),
        ("OTEL_SDK_DISABLED", "True", "is_disabled", True, False),
        ("OTEL_SDK_DISABLED", "false", "is_disabled", False, False),
        ("PERIFLOW_ENABLED", "1", "is_cloud", True, False),
        ("PERIFLOW_ENABLED", "true", "is_cloud", False, False),
        ("PERIFLOW_RUN_ID", "job-7", "run_id", "job-7", None),
        ("PERIFLOW_AGENT", "thread", "agent", "thread", "process"),
        ("PERIFLOW_AGENT", "OFF", "agent", "off", "process"),
        ("PERIFLOW_EXIT_TIMEOUT", "0", "exit_timeout_s", 0.0, 5.0),
        ("PERIFLOW_JOURNAL_MAX_BYTES", str(32 << 20), "journal_max_bytes", 32 << 20, 256 << 20),
        ("OTEL_SERVICE_NAME", "llm", "service_name", "llm", "periflow-training"),
        ("TRACEPARENT", "00-01-02-01", "traceparent", "00-01-02-01", None),
        ("OTEL_RESOURCE_ATTRIBUTES", "b=2,a=1", "resource_attributes", (("a", "1"), ("b", "2")), ()),
    ],
)
def test_the_settings_of_a_run(name: str, text: str, field: str, value: Any, default: Any):
    """One variable each, with its default where it is unset or empty."""
    assert getattr(run(**{name: text}), field) == value
    assert getattr(run(), field) == getattr(run(**{name: " "}), field) == default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "65536"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "-1"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "80.5"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "http"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "nan"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.1"),
        ("OTEL_TRACES_SAMPLER_ARG", "-0.1"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_TRACES_SAMPLER_ARG", "all"),
        ("PERIFLOW_EXIT_TIMEOUT", "-1"),
        ("PERIFLOW_EXIT_TIMEOUT", "inf"),
        ("PERIFLOW_AGENT_LINGER", "-1"),
        ("PERIFLOW_AGENT_LINGER", "forever"),
        ("PERIFLOW_JOURNAL_MAX_BYTES", "1000"),
        ("PERIFLOW_JOURNAL_MAX_BYTES", "1e99"),
        ("OTEL_RESOURCE_ATTRIBUTES", "no value"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,=2"),
        ("PERIFLOW_STATE_DIR", "~nobody-of-that-name/x"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(caplog: pytest.LogCaptureFixture, name: str, value: str):
    """With what to do."""
    message = complaint(caplog, name, value)
    assert message.startswith(f"{name} is '")
    assert message.endswith("or unset it") or ", which is ignored: " in message


@pytest.mark.parametrize("name", ["PERIFLOW_RUN_ID", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "TRACEPARENT"])
def test_bytes_that_are_no_text_are_refused(name: str):
    """They cannot be recorded, let alone exported."""
    environ = {**os.environ, name: b"a=\xff"}
    code = "import os; from periflow_otel.config.run import RunSettings; RunSettings.from_environ(os.environ)"
    shown = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert f"ConfigurationError: {name} is not UTF-8" in shown.stderr


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        ("", "", 1.0),
        ("", "0.5", 1.0),
        ("always_on", "", 1.0),
        ("always_off", "", SAMPLE_NOTHING),
        ("parentbased_always_on", "", 1.0),
        ("parentbased_always_off", "0.5", SAMPLE_NOTHING),
        ("traceidratio", "", 1.0),
        ("traceidratio", "0.25", 0.25),
        ("parentbased_traceidratio", "0", 0.0),
        ("TraceIdRatio", "1", 1.0),
    ],
)
def test_samplers_are_those_of_the_specification(sampler: str, argument: str, ratio: float):
    """The argument counts only for the samplers that have one."""
    assert run(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument).sampling_ratio == ratio


@pytest.mark.parametrize(
    ("sampler", "flags", "ratio"),
    [
        ("", "00", SAMPLE_NOTHING),
        ("", "02", SAMPLE_NOTHING),
        ("", "01", 1.0),
        ("", "03", 1.0),
        ("", "zz", 1.0),
        ("parentbased_traceidratio", "00", SAMPLE_NOTHING),
        ("parentbased_traceidratio", "01", 0.5),
        ("always_on", "00", 1.0),
        ("traceidratio", "00", 0.5),
    ],
)
def test_parent_that_is_not_sampled_is_obeyed(sampler: str, flags: str, ratio: float):
    """As the samplers that begin with ``parentbased`` say; the others ask no parent."""
    traceparent = f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"
    settings = run(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG="0.5", TRACEPARENT=traceparent)
    assert settings.sampling_ratio == ratio


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b%2Cc", {"a": "b,c"}),
        ("a=%E2%82%AC", {"a": "€"}),
        ("a%3D=b=c", {"a=": "b=c"}),
        (" a = b , ,c= ", {"a": "b", "c": ""}),
        ("a=1,a=2", {"a": "2"}),
        ("a=%zz", {"a": "%zz"}),
    ],
)
def test_resource_attributes_are_percent_decoded(text: str, expected: dict[str, str]):
    """Pairs between commas; of two with one key the last counts."""
    assert dict(run(OTEL_RESOURCE_ATTRIBUTES=text).resource_attributes) == expected


@pytest.mark.parametrize(
    ("name", "attributes", "expected"),
    [
        ("own", "service.name=other", "own"),
        ("", "service.name=other", "other"),
        ("", "service.name=", "periflow-training"),
        ("own", "", "own"),
    ],
)
def test_the_service_name_comes_from_its_own_variable_first(name: str, attributes: str, expected: str):
    """It is no attribute besides, which could win later."""
    settings = run(OTEL_SERVICE_NAME=name, OTEL_RESOURCE_ATTRIBUTES=attributes)
    assert settings.service_name == expected
    assert settings.resource_attributes == ()


def test_a_disabled_run_does_not_stumble_over_an_exporter():
    """Who turns telemetry off has no use for an error about where it goes."""
    settings = run(OTEL_SDK_DISABLED="true", OTEL_TRACES_EXPORTER="missing")
    assert settings.consumers == settings.awaited == ()


def test_a_run_knows_who_must_have_its_records():
    """The consumers of the agent, to the letter; at the end of the process, also the console."""
    environ = {"PERIFLOW_ENABLED": "1", "OTEL_TRACES_EXPORTER": "otlp,console"}
    assert run(**environ).consumers == run(**environ).awaited == export(**environ).consumers()
    assert run(**environ, PERIFLOW_CONSOLE="1").awaited == (*export(**environ).consumers(), "console")


@pytest.mark.parametrize(("value", "mode"), [("1", "cloud"), ("0", "local"), ("", "local"), ("true", "local")])
def test_cloud_mode_is_exactly_one(value: str, mode: str):
    """As in ``periflow_sdk``."""
    assert find_mode({"PERIFLOW_ENABLED": value}) == mode


# The state folder


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PERIFLOW_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}, "/a"),
        ({"PERIFLOW_STATE_DIR": "a"}, "{cwd}/a"),
        ({"PERIFLOW_STATE_DIR": "~/a"}, "{home}/a"),
        ({"PERIFLOW_STATE_DIR": "", "XDG_STATE_HOME": "/b"}, "/b/periflow"),
        ({"HOME": "home"}, "{home}/.local/state/periflow"),
        ({"XDG_STATE_HOME": "relative"}, "{home}/.local/state/periflow"),
        ({"XDG_STATE_HOME": ""}, "{home}/.local/state/periflow"),
        ({}, "{home}/.local/state/periflow"),
    ],
)
def test_the_state_folder(environ: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ours, else that of the XDG specification, which takes absolute paths only, else its default."""
    monkeypatch.setenv("HOME", environ.get("HOME") or str(tmp_path / "home"))
    assert str(find_state_dir(environ)) == expected.format(cwd=tmp_path, home=tmp_path / "home")


def test_a_user_without_a_home_or_a_name_has_a_state_folder(monkeypatch: pytest.MonkeyPatch):
    """A container may run under a user id that nobody has heard of."""

    def unknown(_: object) -> None:
        raise KeyError

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert find_state_dir({}) == fallback_state_dir() == Path(tempfile.gettempdir()) / f"periflow-{os.getuid()}"


DESTINATION = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=a-secret,x-other=b",
}


def test_a_destination_is_known_again_and_has_no_fixed_name():
    """Whatever the order of headers, and the time-out."""
    name = ExportSettings.from_environ(DESTINATION).destination()
    same = {"OTEL_EXPORTER_OTLP_HEADERS": "x-other=b,x-api-key=a-secret", "OTEL_EXPORTER_OTLP_TIMEOUT": "5000"}
    settings = ExportSettings.from_environ(DESTINATION | same)
    assert settings.sends_to(name)
    assert settings.destination() != name
    assert "a-secret" not in name


@pytest.mark.parametrize(
    "other",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4319"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=another,x-other=b"},
        {"OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x-api-key=another"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_METRICS_EXPORTER": "none"},
    ],
    ids=["endpoint", "header", "header of a signal", "protocol", "signal"],
)
def test_another_receiver_or_customer_is_another_destination(other: dict[str, str]):
    """What was meant for one does not go to the other."""
    name = ExportSettings.from_environ(DESTINATION).destination()
    assert not ExportSettings.from_environ(DESTINATION | other).sends_to(name)


def test_another_certificate_of_the_same_name_is_another_destination(tmp_path: Path):
    """Two pods may have different ones in the same place."""
    certificate = tmp_path / "client.pem"
    settings = OtlpSettings("traces", "https://localhost", client_certificate=str(certificate))
    certificate.write_text("one")
    before = settings.identity()
    assert settings.identity() == before
    certificate.write_text("another")
    assert settings.identity() != before


def test_everybody_sends_to_nowhere():
    """What goes into files alone is for any agent, and what goes anywhere else is not for one without exporters."""
    local = ExportSettings.from_environ({})
    assert local.destination() == ""
    assert local.sends_to("")
    assert ExportSettings.from_environ(DESTINATION).sends_to("")
    assert not local.sends_to(ExportSettings.from_environ(DESTINATION).destination())
