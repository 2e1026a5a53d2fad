"""Where a signal is sent over OTLP, and how. A setting that cannot be used is an error: it decides who gets the data.

A certificate, a key or any other file has an absolute path from here on, since the agent runs in another folder.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import SplitResult, parse_qsl, urlsplit

from periflow_otel.config.environ import Variables, bad_value
from periflow_otel.config.headers import OTLP_VARIABLES, Headers, HeaderSource, parse_headers, read_headers_file
from periflow_otel.config.proxies import is_excepted
from periflow_otel.errors import ConfigurationError
from periflow_otel.names import OTLP_HEADERS_FILE

if TYPE_CHECKING:
    import ssl

Protocol = Literal["grpc", "http/protobuf", "http/json"]
Compression = Literal["none", "gzip"]
Signal = Literal["traces", "metrics", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """How one signal leaves over OTLP."""

    signal: Signal
    endpoint: str = field(repr=False)
    """Complete URL over HTTP; over gRPC scheme, host and port, or a socket. A query in it may be a secret."""
    protocol: Protocol = "http/protobuf"
    headers: Headers = field(default=Headers())
    headers_file: str | None = None
    """File with more headers, which is read again when it changes."""
    compression: Compression = "none"
    timeout_s: float = 10.0
    certificate: str | None = None
    """File with the certificates to trust instead of the system's."""
    client_certificate: str | None = None
    client_key: str | None = None
    """Set where ``client_certificate`` is; perhaps the same file."""
    insecure: bool = False
    """gRPC only: no TLS."""
    proxy: str | None = field(default=None, repr=False)
    """URL of the HTTP proxy that TLS connections go through; it may hold a password."""

    @property
    def place(self) -> str:
        """The endpoint, to be shown."""
        return urlsplit(self.endpoint)._replace(query="", fragment="").geturl()

    def header_source(self) -> HeaderSource:
        """Return what tells the headers of each request."""
        return HeaderSource(self.headers, OTLP_HEADERS_FILE, self.headers_file, is_grpc=self.protocol == "grpc")

    def secrets(self, headers: Headers) -> Headers:
        """Return what must not be shown of a request with such headers: they, and the values in the query."""
        return Headers((*headers, *parse_qsl(urlsplit(self.endpoint).query)))

    def identity(self) -> tuple[object, ...]:
        """Return all that tells one receiver, and one customer of it, from another; it holds secrets.

        Certificates count by what is in their files: other pods may have others of the same name.
        """
        files = tuple(_content(each) for each in (self.certificate, self.client_certificate, self.headers_file))
        return self.signal, self.endpoint, self.protocol, tuple(sorted(map(tuple, self.headers))), files


def _content(path: str | None) -> bytes:
    try:
        return Path(path).read_bytes() if path else b""
    except OSError:  # it was there when the settings were resolved
        return b"gone"


def resolve_otlp(variables: Variables, signal: Signal) -> OtlpSettings:
    """Resolve how a signal leaves over OTLP.

    Raises:
        ConfigurationError: A variable has a value that cannot be used. Header values and passwords are never shown.
    """
    protocol_name, _ = of_signal(variables, signal, "PROTOCOL")
    protocol: Protocol = variables.choice(protocol_name, "http/protobuf", get_args(Protocol))
    compression_name, _ = of_signal(variables, signal, "COMPRESSION")
    timeout_name, _ = of_signal(variables, signal, "TIMEOUT")
    endpoint = _endpoint(variables, signal, protocol)
    is_plain = endpoint.startswith(("http://", "unix"))
    client_certificate, client_key = _client_files(variables, signal)
    return OtlpSettings(
        signal=signal,
        endpoint=endpoint,
        protocol=protocol,
        headers=_headers(variables, signal, protocol),
        headers_file=_headers_file(variables, protocol),
        compression=variables.choice(compression_name, "none", get_args(Compression)),
        timeout_s=(variables.number(timeout_name, 10_000, 0, MAX_TIMEOUT_MS) or MAX_TIMEOUT_MS) / 1000,
        certificate=_certificate(variables, signal),
        client_certificate=client_certificate,
        client_key=client_key,
        insecure=is_plain,
        proxy=None if is_plain else _proxy(variables, endpoint),
    )


MAX_TIMEOUT_MS: Final = 3_600_000
"""What 0 stands for, too, which is the standard's word for no limit: a connection that is dead is noticed some time."""


def of_signal(variables: Variables, signal: Signal, setting: str) -> tuple[str, str | None]:
    """Return the variable that decides a setting of a signal, and its value: the signal's own one first."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{setting}"
    if value := variables.text(own):
        return own, value
    general = f"OTEL_EXPORTER_OTLP_{setting}"
    return general, variables.text(general)


def _endpoint(variables: Variables, signal: Signal, protocol: Protocol) -> str:
    name, given = of_signal(variables, signal, "ENDPOINT")
    insecure_name, _ = of_signal(variables, signal, "INSECURE")
    is_insecure = variables.boolean(insecure_name)
    if given is None:
        return _DEFAULT_GRPC if protocol == "grpc" else f"{_DEFAULT_HTTP}/v1/{signal}"
    if protocol == "grpc" and _SOCKET.fullmatch(given):
        return given
    if protocol == "grpc" and ("://" not in given or given.startswith("dns:")):
        given = f"{'http' if is_insecure else 'https'}://{_DNS.sub('', given)}"
    url = _endpoint_url(name, given)
    if protocol != "grpc" and name == "OTEL_EXPORTER_OTLP_ENDPOINT":
        url = url._replace(path=f"{url.path.rstrip('/')}/v1/{signal}")
    return url.geturl()


def _endpoint_url(name: str, given: str) -> SplitResult:
    url = _split(given)
    if url is None:
        is_secret = "@" in given or "?" in given
        value = "not a URL (not shown: it may hold a password)" if is_secret else repr(given)
        message = f"{name} is {value}; give one such as http://localhost:4318, with a port from 1 to 65535, or unset it"
        raise ConfigurationError(message, OTLP_VARIABLES)
    if url.username is not None:
        message = f"{name} holds a user name or password; put them into OTEL_EXPORTER_OTLP_HEADERS"
        raise ConfigurationError(message, OTLP_VARIABLES)
    return url


def _split(text: str) -> SplitResult | None:
    """Take a URL apart; None if it is none that can be connected to."""
    try:
        url = urlsplit(text)
        is_whole = url.hostname and url.port != 0 and not url.netloc.endswith(":")
    except ValueError:
        return None
    return url if is_whole and url.scheme in ("http", "https") and _URL_CHARACTERS.fullmatch(text) else None


def _proxy(variables: Variables, endpoint: str) -> str | None:
    """Return the proxy for a TLS endpoint, from the variables that curl and others read. Plain text goes direct."""
    name = "https_proxy" if variables.text("https_proxy") else "HTTPS_PROXY"
    proxy = variables.text(name)
    if proxy is None:
        return None
    receiver = urlsplit(endpoint)
    exceptions = variables.text("no_proxy") or variables.text("NO_PROXY") or ""
    if is_excepted(receiver.hostname or "", receiver.port or 443, exceptions):
        return None
    url = _split(proxy if "://" in proxy else f"http://{proxy}")
    if url is None or url.scheme != "http":
        message = f"{name} is not a URL such as http://host:3128 (not shown: it may hold a password); fix or unset it"
        raise ConfigurationError(message, OTLP_VARIABLES)
    return url.geturl()


def _headers(variables: Variables, signal: Signal, protocol: Protocol) -> Headers:
    name, text = of_signal(variables, signal, "HEADERS")
    return parse_headers(name, text or "", is_grpc=protocol == "grpc")


def _headers_file(variables: Variables, protocol: Protocol) -> str | None:
    """Return the absolute path of the file of headers, read once so that a mistake shows now."""
    name, path = OTLP_HEADERS_FILE, variables.text(OTLP_HEADERS_FILE)
    if path is None:
        return None
    try:
        read_headers_file(name, path, is_grpc=protocol == "grpc")
    except OSError as error:
        raise bad_value(name, path, f"which cannot be read ({error.strerror}); give the path of a file") from None
    return str(Path(path).absolute())


def _file(variables: Variables, signal: Signal, setting: str) -> tuple[str, str | None]:
    """Return the variable that names a file, and the file's absolute path."""
    name, path = of_signal(variables, signal, setting)
    if path is not None and not os.path.isfile(path):  # noqa: PTH113  # Path raises where it may not look
        raise bad_value(name, path, "give the path of a PEM file that exists")
    return name, None if path is None else str(Path(path).absolute())


def _certificate(variables: Variables, signal: Signal) -> str | None:
    name, path = _file(variables, signal, "CERTIFICATE")
    if path is not None:
        _try_tls(name, path, "a PEM file of certificates", lambda context: context.load_verify_locations(path))
    return path


def _client_files(variables: Variables, signal: Signal) -> tuple[str | None, str | None]:
    """Return the files of the client's certificate and of its key, or neither."""
    name, certificate = _file(variables, signal, "CLIENT_CERTIFICATE")
    key_name, key = _file(variables, signal, "CLIENT_KEY")
    if certificate is None:
        if key is not None:
            message = f"{key_name} is set without the certificate of the key; set {name} too, or unset it"
            raise ConfigurationError(message, OTLP_VARIABLES)
        return None, None
    key = key or certificate
    kind = f"a PEM file of a certificate, and its key, not encrypted, in the same file or in that of {key_name}"
    _try_tls(name, certificate, kind, lambda context: context.load_cert_chain(certificate, key, password=""))
    return certificate, key


def _try_tls(name: str, path: str, kind: str, load: "Callable[[ssl.SSLContext], None]") -> None:
    """Load files as it is going to be done, so that a mistake shows now."""
    import ssl  # noqa: PLC0415  # takes milliseconds, and most never need it

    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise bad_value(name, path, f"that does not load ({reason}); give {kind}") from None


_DEFAULT_HTTP: Final = "http://localhost:4318"
_DEFAULT_GRPC: Final = "http://localhost:4317"
_URL_CHARACTERS: Final = re.compile(r"[!-~]+")
_DNS: Final = re.compile(r"^dns:(///)?")
"""What gRPC thinks of a name without it, too."""
_SOCKET: Final = re.compile(r"unix:(//)?/[!-~]+|unix-abstract:[!-~]+")
"""Sockets of this machine, as gRPC writes them; a relative path would be another one for the agent."""
