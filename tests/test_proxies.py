"""Hosts that are reached without a proxy are named in the ways that people know from other programs."""

import pytest

from periflow_otel.config.proxies import is_excepted


@pytest.mark.parametrize(
    ("host", "exceptions"),
    [
        ("otlp.example.com", "example.com"),
        ("otlp.example.com", ".example.com"),
        ("otlp.example.com", "*.example.com"),
        ("example.com", "example.com"),
        ("OTLP.Example.COM.", "a, otlp.example.com."),
        ("otlp.example.com", "a b\totlp.example.com"),
        ("otlp.example.com", "example.com:4317"),
        ("anything", "*"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3:4317"),
        ("10.1.2.3", "192.168.0.0/16,10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.99/24"),
        ("::1", "::1"),
        ("::1", "[::1]"),
        ("::1", "[::1]:4317"),
        ("0:0::1", "::1"),
        ("fd00::7", "fd00::/8"),
        ("fd00::7", "FD00::/8"),
    ],
)
def test_exception_holds(host: str, exceptions: str):
    """Names with all below them, addresses, networks, and everything."""
    assert is_excepted(host, 4317, exceptions)


@pytest.mark.parametrize(
    ("host", "exceptions"),
    [
        ("otlp.example.com", ""),
        ("otlp.example.com", ",, ,"),
        ("otlp.example.com", "ample.com"),
        ("otlp.example.com", "otlp.example.com:1"),
        ("otlp.example.com", "."),
        ("otlp.example.com", "*."),
        ("example.com", "otlp.example.com"),
        ("10.1.2.3", "10.1.2.3:1"),
        ("10.1.2.3", "2.3"),
        ("10.1.2.3", "192.168.0.0/16"),
        ("10.1.2.3", "10.0.0.0/40"),
        ("10.1.2.3", "fd00::/8"),
        ("::1", "[::1]:1"),
        ("::1", "::2"),
        ("otlp.example.com", "10.0.0.0/8"),
        ("otlp.example.com", "http://otlp.example.com/"),
    ],
)
def test_no_exception_holds(host: str, exceptions: str):
    """What is not named goes through the proxy, and nonsense names nothing."""
    assert not is_excepted(host, 4317, exceptions)
