"""Whom to trust and who we are, the same over HTTP and gRPC."""

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.config.endpoints import OtlpSettings


def tls_context(settings: OtlpSettings) -> ssl.SSLContext:
    """Return what TLS over HTTP needs.

    Raises:
        OSError: A file has gone, or does not hold what it should.
    """
    context = ssl.create_default_context(cafile=settings.certificate)
    # As gRPC does, on every Python: from 3.13 on, the default refuses authorities that are older than RFC 5280, and up
    # to 3.12 those that are named without the one above.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.client_certificate is not None:
        # With no password at all, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(settings.client_certificate, settings.client_key, password="")
    return context


def trusted_roots(settings: OtlpSettings) -> bytes | None:
    """Return the certificates that a connection over HTTP would trust; None for those that gRPC brings along.

    Left to itself gRPC trusts a list of its own, and knows nothing of what the owner of the machine has added or taken
    away. That list is used where the machine has none; a file that gRPC's own variable names is trusted too.

    Raises:
        OSError: The file of the settings has gone.
    """
    if settings.certificate is not None:
        return Path(settings.certificate).read_bytes()
    return b"\n".join(dict.fromkeys(_system_certificates())) or None


def _system_certificates() -> Iterator[bytes]:
    """Yield the certificates in the files that OpenSSL looks into: SSL_CERT_FILE and SSL_CERT_DIR can name others."""
    for path in _system_files():
        with suppress(OSError):
            yield from _CERTIFICATE.findall(path.read_bytes())


def _system_files() -> Iterator[Path]:
    paths = ssl.get_default_verify_paths()
    yield Path(os.environ.get(paths.openssl_cafile_env) or paths.openssl_cafile)
    if named := os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        yield Path(named)
    for folder in (os.environ.get(paths.openssl_capath_env) or paths.openssl_capath).split(os.pathsep):
        with suppress(OSError):
            yield from sorted(each for each in Path(folder).iterdir() if _HASH.fullmatch(each.name))


_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END (?:TRUSTED |X509 )?CERTIFICATE-----", re.DOTALL
)
_HASH: Final = re.compile(r"[0-9a-f]{8}\.\d+")
"""Names by which OpenSSL finds a certificate in a folder."""
