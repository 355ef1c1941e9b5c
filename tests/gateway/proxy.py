"""The proxies of conf/ as real processes: their published configurations, with other addresses in them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.gateway.process import Gateway
from tests.system.stack import ROOT

PATIENCE_S = 30.0
NGINX_AROUND = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/errors.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listened at a moment ago: neither proxy tells which one it got for port 0."""
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def rewritten(name: str, changes: Mapping[str, str]) -> str:
    """A file of conf/ with each of `changes` made; all of them must be found."""
    text = (ROOT / "conf" / name).read_text()
    for old, new in changes.items():
        assert old in text, f"conf/{name} does not hold {old!r}"
        text = text.replace(old, new)
    return text


class Proxy:
    """A context manager; serves at `url`, and gRPC at `rpc`, what two gateways do."""

    def __init__(self, folder: Path, kind: str, gateways: tuple[Gateway, Gateway]) -> None:
        self._folder = folder
        self.port, self._rpc_port = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self.rpc = f"127.0.0.1:{self._rpc_port}"
        changes: dict[str, str] = {}
        for gateway, port, rpc_port in zip(gateways, (8080, 8081), (50052, 50053), strict=True):
            address = gateway.url.removeprefix("http://")
            changes[f"127.0.0.1:{port}"] = address
            changes[f"127.0.0.1:{rpc_port}"] = gateway.rpc
            if kind == "haproxy":
                changes[f"check port {port} "] = f"check port {address.rpartition(':')[2]} "
        command = (self._nginx if kind == "nginx" else self._haproxy)(changes)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def _nginx(self, changes: dict[str, str]) -> list[str]:
        listening = {
            "    listen 80;": f"    listen 127.0.0.1:{self.port};",
            "    listen 50051 http2;": f"    listen {self.rpc} http2;",
        }
        (self._folder / "site.conf").write_text(rewritten("nginx.conf", {**changes, **listening}))
        # Its own user could not write below the folder.
        user = "user root;" if os.getuid() == 0 else ""
        (self._folder / "nginx.conf").write_text(NGINX_AROUND.format(folder=self._folder, user=user))
        return ["nginx", "-p", str(self._folder), "-e", f"{self._folder}/log", "-c", f"{self._folder}/nginx.conf"]

    def _haproxy(self, changes: dict[str, str]) -> list[str]:
        listening = {
            "bind :80\n": f"bind 127.0.0.1:{self.port}\n",
            "bind :50051 proto h2": f"bind {self.rpc} proto h2",
            "log /dev/log": "log stderr format raw",
        }
        (self._folder / "haproxy.cfg").write_text(rewritten("haproxy.cfg", {**changes, **listening}))
        return ["haproxy", "-db", "-f", f"{self._folder}/haproxy.cfg"]

    def __enter__(self) -> Proxy:
        deadline = time.monotonic() + PATIENCE_S
        for port in (self.port, self._rpc_port):
            while not listens(port):
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
