"""The little of HTTP/1 that a read-only page needs: a request is read, a response is written, both plain data."""

import gzip
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

PLAIN: Final = "text/plain; charset=utf-8"
MIN_GZIP_BYTES: Final = 1024
"""What is shorter fits into a packet or two anyway."""
_GZIP_LEVEL: Final = 4  # a page of 50 KiB: 6 times smaller in 1 ms; level 9 takes 4 ms for 2 % less
_NO_HEADERS: Final[Mapping[str, str]] = {}


class Request(NamedTuple):
    """What a client asks for."""

    method: str
    path: str
    """Decoded, without the query."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By their names in lower case; one that is repeated is joined with commas."""

    @property
    def host(self) -> str | None:
        """Whom the client means to ask; None if it does not say, as only programs of old may."""
        return self.headers.get("host")


class Response(NamedTuple):
    """What the client gets."""

    body: bytes = b""
    content_type: str = PLAIN
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = _NO_HEADERS


def refusal(status: HTTPStatus, text: str = "", headers: Mapping[str, str] = _NO_HEADERS) -> Response:
    """Return an answer that says why there is no other."""
    return Response(f"{text or status.phrase}\n".encode(), status=status, headers=headers)


def parse_request(head: bytes) -> Request | None:
    """Read a request up to its empty line; None for what is no request of HTTP/1."""
    request, *fields = head.decode("latin-1").partition("\r\n\r\n")[0].split("\r\n")
    headers = _headers(fields)
    match request.split(" "):
        case [method, target, ("HTTP/1.0" | "HTTP/1.1") as version] if headers is not None:
            if version == "HTTP/1.1" and "host" not in headers:
                return None
            path, _, query = target.partition("?")
            return Request(method, unquote(path), dict(parse_qsl(query)), headers)
        case _:
            return None


def encode_response(response: Response, *, has_body: bool = True) -> bytes:
    """Write a response; without its body it is the answer to HEAD."""
    fields = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        **response.headers,
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}", *map(": ".join, fields.items()), "", ""]
    if any(re.search(r"[\x00-\x1f\x7f-\x9f]", line) for line in lines):  # it would end the line, and the headers
        return encode_response(refusal(HTTPStatus.INTERNAL_SERVER_ERROR), has_body=has_body)
    return "\r\n".join(lines).encode("latin-1", "replace") + (response.body if has_body else b"")


def compressed(response: Response, request: Request) -> Response:
    """Return a response as small as the client can read it."""
    headers = {**response.headers, "Vary": "Accept-Encoding"}
    if len(response.body) < MIN_GZIP_BYTES or "Content-Encoding" in headers or not _takes_gzip(request):
        return response._replace(headers=headers)
    headers["Content-Encoding"] = "gzip"
    return response._replace(body=gzip.compress(response.body, _GZIP_LEVEL), headers=headers)


def _takes_gzip(request: Request) -> bool:
    """Tell whether a client reads gzip: the standard has it named, or ``*``, with a weight that is not 0."""
    weights: dict[str, bool] = {}
    for coding in request.headers.get("accept-encoding", "").lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        weights[name] = not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", each) for each in parameters)
    return weights.get("gzip", weights.get("*", False))


def _headers(fields: list[str]) -> dict[str, str] | None:
    """Return headers by name; None if one is none, or has in it what may end a line."""
    headers: dict[str, str] = {}
    for field in fields:
        name, colon, value = field.partition(":")
        if not colon or not name or re.search(r"[\x00-\x20\x7f]", name) or re.search(r"[\x00\r\n]", value):
            return None
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
