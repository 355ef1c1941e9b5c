"""What all daemons share: command line, logs, service notification, metrics and health."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from lighttts import metrics
from lighttts.config import Config
from lighttts.daemon import run_daemon
from lighttts.errors import BY_CODE, ConfigError, InternalError, LightTTSError, Overloaded, from_code
from lighttts.metrics import HealthServer
from lighttts.notify import notify, watchdog_interval

LOG_AND_WARN = """
import warnings
from lighttts import logs
from lighttts.config import LogConfig
logs.configure("llm", LogConfig(level="info"))
logs.get_logger(request_id="r1").info("made", tokens=3)
logs.get_logger().debug("not shown")
warnings.warn("old option")
secret = "hunter2"
try:
    raise ValueError("broke")
except ValueError:
    logs.get_logger().exception("failed")
"""


LOG_ESCAPES = """
from lighttts import logs
from lighttts.config import LogConfig
logs.configure("llm", LogConfig(format="console"))
logs.get_logger().warning("messages refused", latest="\\x1b]0;title\\x07")
"""


def test_what_a_terminal_would_obey_is_escaped() -> None:
    result = subprocess.run([sys.executable, "-c", LOG_ESCAPES], capture_output=True, text=True, check=True)
    assert "\\x1b]0;title\\x07" in result.stderr
    assert "\x1b]0" not in result.stderr


def test_logs_are_json_lines_without_the_values_of_locals() -> None:
    result = subprocess.run([sys.executable, "-c", LOG_AND_WARN], capture_output=True, text=True, check=True)
    made, warned, failed = (json.loads(line) for line in result.stderr.splitlines())
    assert made["service"] == "llm"
    assert (made["request_id"], made["event"], made["tokens"], made["level"]) == ("r1", "made", 3, "info")
    assert "old option" in warned["event"]
    assert failed["exception"][0]["exc_value"] == "broke"
    assert "hunter2" not in result.stderr


def test_a_typed_error_is_one_sentence_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Config) -> int:
        raise ConfigError("port 5570 is in use")

    assert run_daemon("broker", "test", main, []) == 78
    assert capsys.readouterr().err == "lighttts-broker: port 5570 is in use\n"


def test_a_daemon_gets_its_configuration_and_returns_its_exit_code() -> None:
    assert run_daemon("llm", "test", lambda config: config.llm.slots, ["--set", "llm.slots=7"]) == 7


def test_states_reach_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1", "STATUS=up")
        assert manager.recv(100) == b"READY=1\nSTATUS=up"


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


def test_the_watchdog_is_fed_twice_an_interval_and_only_by_the_watched_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 5.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_and_metrics_are_served() -> None:
    healthy = True
    server = HealthServer(0, lambda: (healthy, "serving" if healthy else "no broker"))
    try:
        assert server._server.server_address[0] == "127.0.0.1"
        base = f"http://127.0.0.1:{server.port}"
        assert _get(f"{base}/healthz") == (200, "serving\n")
        healthy = False
        assert _get(f"{base}/healthz") == (503, "no broker\n")
        assert "light_tts_requests_total" in _get(f"{base}/metrics")[1]
        assert _get(f"{base}/other")[0] == 404
        with pytest.raises(ConfigError, match=f"{server.port}.*another metrics_port"):
            HealthServer(server.port, lambda: (True, ""))
    finally:
        server.close()


def test_the_promised_metrics_exist_with_their_labels() -> None:
    labels = {
        metrics.requests_total: ("service", "method"),
        metrics.request_duration: ("service",),
        metrics.batch_size: ("service",),
        metrics.queue_length: ("service",),
        metrics.gpu_utilization: ("gpu_id",),
        metrics.memory_usage: ("type",),
        metrics.cache_hit_rate: ("cache_type",),
    }
    assert {metric._labelnames for metric in labels} == set(labels.values())
    names = {family.name for family in REGISTRY.collect()}
    assert {
        "light_tts_requests",
        "light_tts_request_duration_seconds",
        "light_tts_batch_size",
        "light_tts_queue_length",
        "light_tts_gpu_utilization",
        "light_tts_memory_usage",
        "light_tts_cache_hit_rate",
    } <= names


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_an_error_keeps_its_type_across_its_code(code: str) -> None:
    error = from_code(code, "text", field="f", retryable=True, retry_after=1.5)
    assert type(error) is BY_CODE[code]
    assert (error.code, error.text, error.field, error.retryable, error.retry_after) == (code, "text", "f", True, 1.5)


def test_an_unknown_code_is_an_internal_error_that_names_it() -> None:
    error = from_code("from_the_future", "text")
    assert isinstance(error, InternalError)
    assert "from_the_future" in error.text


def test_overload_is_retryable_by_default() -> None:
    assert Overloaded("full").retryable
    assert not LightTTSError("broken").retryable


def test_a_daemon_may_open_as_many_files_as_the_system_lets_it() -> None:
    lower = "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard))"
    look = "run_daemon('llm', '', lambda _: int(r.getrlimit(r.RLIMIT_NOFILE)[0] == hard), [])"
    script = f"{lower}\nfrom lighttts.daemon import run_daemon\nraise SystemExit({look})"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 1


def test_ctrl_c_while_a_model_loads_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Config) -> int:
        raise KeyboardInterrupt

    assert run_daemon("llm", "test", main, []) == 130
    assert capsys.readouterr().err == "lighttts-llm: interrupted\n"
