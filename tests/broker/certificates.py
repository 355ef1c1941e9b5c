"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """Who signs certificates; all files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate, self._key = self._paths("authority")
        self._openssl("-x509", *_KEY, "-keyout", str(self._key), "-out", str(self.certificate), "-subj", "/CN=tests")

    def issue(self, name: str, names: str) -> tuple[Path, Path]:
        """A certificate for `names`, such as DNS:localhost, and its key."""
        certificate, key = self._paths(name)
        signed = ["-CA", str(self.certificate), "-CAkey", str(self._key), "-addext", f"subjectAltName={names}"]
        self._openssl("-x509", *_KEY, *signed, "-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}")
        return certificate, key

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{name}.crt", self._folder / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", "req", *arguments], check=True, capture_output=True)
