"""Which hosts are reached without a proxy: ``no_proxy`` as curl, Go and gRPC read it, together."""

import ipaddress


def is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Tell whether a host is among the exceptions.

    Args:
        host: A name, or an address without brackets.
        port: Where it is reached.
        exceptions: Separated by commas or spaces: ``*``, names (with all that end in them, written ``example.com``,
            ``.example.com`` or ``*.example.com``), addresses and networks, the former two also with a port.
    """
    return any(_matches(_plain(host), port, each) for each in exceptions.replace(",", " ").lower().split())


def _matches(host: str, port: int, exception: str) -> bool:
    if exception == "*":
        return True
    if "/" in exception or exception.count(":") > 1:
        return _is_inside(host, port, exception)
    name, _, only_port = exception.partition(":")
    if only_port not in ("", str(port)):
        return False
    name = _plain(name.removeprefix("*").lstrip("."))
    return bool(name) and (host == name or (host.endswith(f".{name}") and not _is_address(host)))


def _is_inside(host: str, port: int, exception: str) -> bool:
    """Tell whether an address is one of a network, or an IPv6 address, which may be in brackets and have a port."""
    address, _, rest = exception.removeprefix("[").partition("]")
    if rest not in ("", f":{port}"):
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(address, strict=False)
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _plain(host: str) -> str:
    return host.lower().rstrip(".")
