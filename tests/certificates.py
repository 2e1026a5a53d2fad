"""A certificate authority for tests, made with the ``openssl`` program."""

import subprocess
from pathlib import Path


class Authority:
    """Issues certificates into its folder."""

    def __init__(self, folder: Path) -> None:
        """Make the certificate of the authority itself."""
        folder.mkdir(parents=True)
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        extension = "basicConstraints=critical,CA:TRUE"
        _openssl(
            *_REQUEST, "-keyout", self._key, "-out", self.certificate, "-subj", "/CN=authority", "-addext", extension
        )

    def issue(self, name: str, alternative_name: str = "IP:127.0.0.1") -> tuple[Path, Path]:
        """Return the files of a certificate and of its key."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        extensions = ("-addext", f"subjectAltName={alternative_name}", "-addext", "basicConstraints=CA:FALSE")
        issuer = ("-CA", self.certificate, "-CAkey", self._key)
        _openssl(*_REQUEST, "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", *extensions, *issuer)
        return certificate, key


_REQUEST = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S607  # wherever it is installed
