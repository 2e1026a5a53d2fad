"""A certificate authority for tests, made with the ``openssl`` program."""

import subprocess
from pathlib import Path

_CONSTRAINT = "basicConstraints=critical,CA:TRUE"
_USAGE = "keyUsage=critical,keyCertSign,cRLSign"


class Authority:
    """Issues certificates into its folder."""

    def __init__(self, folder: Path, issuer: "Authority | None" = None, *, states_usage: bool = True) -> None:
        """Make the certificate of the authority itself; old ones do not state what their key is for."""
        folder.mkdir(parents=True)
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        extensions = [_CONSTRAINT, _USAGE] if states_usage else [_CONSTRAINT]
        _make(self.certificate, self._key, "authority", extensions, issuer)

    def hashed_folder(self) -> Path:
        """Return a folder in which OpenSSL finds the certificate of the authority."""
        folder = self._folder / "hashed"
        folder.mkdir(exist_ok=True)
        command = ["openssl", "x509", "-hash", "-noout", "-in", self.certificate]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        (folder / f"{name}.0").write_bytes(self.certificate.read_bytes())
        return folder

    def issue(self, name: str, alternative_name: str = "IP:127.0.0.1") -> tuple[Path, Path]:
        """Return the files of a certificate and of its key."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        _make(certificate, key, name, [f"subjectAltName={alternative_name}", "basicConstraints=CA:FALSE"], self)
        return certificate, key


def _make(certificate: Path, key: Path, name: str, extensions: list[str], issuer: Authority | None) -> None:
    arguments: list[str | Path] = ["-keyout", key, "-out", certificate, "-subj", f"/CN={name}"]
    for extension in extensions:
        arguments += ["-addext", extension]
    if issuer:
        arguments += ["-CA", issuer.certificate, "-CAkey", issuer._key]
    subprocess.run(["openssl", *_REQUEST, *arguments], check=True, capture_output=True)  # noqa: S607  # wherever it is


_REQUEST = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
