"""`lighttts-cli doctor`: each fault is one line with what mends it."""

from __future__ import annotations

import importlib.util
import resource
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.cli import checks
from lighttts.cli.checks import Finding, Level
from lighttts.config import Config, load_config
from lighttts.gateway.keys import new_key
from tests.broker.certificates import Authority
from tests.cli.conftest import Run
from tests.client.fake_broker import FakeBroker

TINY = Path(__file__).resolve().parents[1] / "golden/cosyvoice2-tiny"


def config(*overrides: str) -> Config:
    return load_config(overrides=overrides, environ={})


def the(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture
def free(tmp_path: Path) -> list[str]:
    """Settings with which no address is in use."""
    sockets = [f"broker.{name}=ipc://{tmp_path}/{name}" for name in ("clients", "workers", "results")]
    ports = [f"{name}.metrics_port=null" for name in ("broker", "encode", "llm", "decode")]
    return [argument for setting in (*sockets, *ports) for argument in ("--set", setting)]


def test_all_is_well_with_a_whole_model_and_free_addresses(run: Run, free: list[str]) -> None:
    done = run("doctor", "--model", str(TINY), *free)
    assert done.code == 0, done.out.decode()
    lines = done.out.decode().splitlines()
    assert lines[-1] == "all is well"
    assert {line.split()[0] for line in lines[:-1]} == {"ok", "note"}


def test_a_missing_model_is_a_problem(run: Run, free: list[str]) -> None:
    done = run("doctor", "--model", "no/such/model", *free)
    assert done.code == 1
    assert b"PROBLEM  there is no model directory" in done.out
    assert done.out.endswith(b"1 problem\n")


def test_every_damaged_file_of_a_model_is_told(tmp_path: Path) -> None:
    for path in TINY.iterdir():
        if path.name not in ("llm.pt", "campplus.onnx"):
            (tmp_path / path.name).symlink_to(path)
    problems = [finding.text for finding in checks.model(tmp_path)]
    assert len(problems) == 2
    assert all(finding.level is Level.PROBLEM for finding in checks.model(tmp_path))


def test_a_wrong_configuration_is_a_problem_that_names_the_nearest_key(run: Run) -> None:
    done = run("doctor", "--set", "broker.client=x")
    assert done.code == 1
    assert b"did you mean 'broker.clients'" in done.out


def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    problem = the(finding for finding in checks.packages() if finding.level is Level.PROBLEM)
    assert "redis" in problem.text
    assert "pip install 'lighttts[server]'" in problem.text


@pytest.mark.parametrize("module", ["uvicorn", "grpc", "grpc_tools"])
def test_a_machine_may_be_without_the_gateway_s_packages(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    note = the(finding for finding in checks.packages() if finding.level is not Level.OK)
    assert note.level is Level.NOTE
    assert "pip install 'lighttts[gateway]'" in note.text


@pytest.mark.parametrize(
    ("settings", "content", "level", "says"),
    [
        ((), None, Level.OK, "whoever reaches 127.0.0.1"),
        (("gateway.host=0.0.0.0",), None, Level.PROBLEM, "make an API key"),
        (("gateway.keys={}",), None, Level.PROBLEM, "cannot be read"),
        (("gateway.keys={}",), "", Level.PROBLEM, "nobody may use"),
        (("gateway.keys={}",), "damaged", Level.PROBLEM, "line 1"),
        (("gateway.keys={}", "gateway.host=0.0.0.0"), new_key("a", 1, 1)[0].line(), Level.OK, "1 API key in"),
    ],
    ids=["none", "none, for all to reach", "no file", "an empty file", "a damaged file", "one"],
)
def test_the_api_keys_are_looked_at(
    tmp_path: Path, settings: tuple[str, ...], content: str | None, level: Level, says: str
) -> None:
    path = tmp_path / "api-keys"
    if content is not None:
        path.write_text(content)
    finding = the(checks.api_keys(config(*(setting.format(path) for setting in settings))))
    assert finding.level is level
    assert says in finding.text


def test_the_certificate_of_the_gateway_is_looked_at(tmp_path: Path) -> None:
    assert not list(checks.certificate(config()))
    certificate, key = Authority(tmp_path).issue("gateway", "DNS:localhost")
    tls = config(f"gateway.tls_certificate={certificate}", f"gateway.tls_key={key}")
    assert the(checks.certificate(tls)).level is Level.OK
    key.chmod(0o644)
    finding = the(checks.certificate(tls))
    assert finding.level is Level.PROBLEM
    assert f"chmod 600 {key}" in finding.text


def test_an_old_python_or_another_system_is_a_problem() -> None:
    assert "3.9.2 is too old" in the(checks.python((3, 9, 2), "linux")).text
    assert the(checks.python((3, 12, 0), "darwin")).level is Level.PROBLEM
    assert the(checks.python((3, 11, 0), "linux")).level is Level.OK


def test_a_port_in_use_by_another_program_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = the(checks.ports(config(f"llm.metrics_port={port}", "broker.clients=tcp://127.0.0.1:1")))
    assert finding.level is Level.PROBLEM
    assert f"llm.metrics_port (tcp://127.0.0.1:{port})" in finding.text


def test_redis_that_does_not_answer_is_a_problem_and_its_password_is_not_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    finding = the(checks.redis(config(f"broker.state=redis://:secret@127.0.0.1:{port}/0")))
    assert finding.level is Level.PROBLEM
    assert f"127.0.0.1:{port}" in finding.text
    assert "secret" not in finding.text


def test_few_open_files_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    finding = the(checks.files(config()))
    assert finding.level is Level.PROBLEM
    assert "LimitNOFILE" in finding.text
    assert the(checks.files(config("broker.max_requests=100"))).level is Level.OK


def test_a_gpu_that_was_asked_for_and_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert the(checks.device(config("model.device=cuda"))).level is Level.PROBLEM
    assert the(checks.device(config("model.device=cpu"))).level is Level.OK


@pytest.mark.parametrize(
    ("lost", "mends"), [("find_spec", "CUDA build of torch"), ("which", "install gcc"), ("get_paths", "python3-dev")]
)
def test_what_a_gpu_s_kernels_cannot_be_compiled_without_is_a_problem(
    lost: str, mends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    places = {"find_spec": (importlib.util, None), "which": (shutil, None), "get_paths": (sysconfig, {"include": "/"})}
    module, answer = places[lost]
    monkeypatch.setattr(module, lost, lambda *_: answer)
    _, finding = checks.device(config("model.device=cuda"))
    assert finding.level is Level.PROBLEM
    assert mends in finding.text
    assert len([*checks.device(config("model.device=cpu"))]) == 1


def test_a_running_broker_is_asked_for_its_workers(run: Run) -> None:
    with FakeBroker(stages=("encode", "decode")) as broker:
        done = run("doctor", "--model", str(TINY), "--broker", broker.endpoint)
    assert done.code == 1
    assert b"1 encode worker ready" in done.out
    assert b"PROBLEM  no llm worker is ready: start lighttts-llm" in done.out


def test_each_broker_of_a_list_is_asked(run: Run) -> None:
    with FakeBroker() as gone:
        pass
    with FakeBroker() as broker:
        both = f"{broker.endpoint},{gone.endpoint}"
        named = run("doctor", "--model", str(TINY), "--broker", both)
        configured = run("doctor", "--model", str(TINY), "--set", f"connect.clients={both}")
    for done in (named, configured):
        assert done.code == 1
        assert f"ok       broker fake answers at {broker.endpoint}\n".encode() in done.out
        assert f"PROBLEM  no broker answers at {gone.endpoint}".encode() in done.out
        assert b"PROBLEM  broker fake keeps its state in memory, so no other can go on" in done.out


def test_a_wrong_address_of_a_broker_is_a_problem(run: Run) -> None:
    done = run("doctor", "--model", str(TINY), "--broker", "localhost")
    assert done.code == 1
    assert b"PROBLEM  'localhost' is not an address" in done.out


def test_a_named_broker_that_does_not_answer_is_a_problem() -> None:
    with FakeBroker() as gone:
        pass
    finding = the(checks.broker(gone.endpoint))
    assert finding.level is Level.PROBLEM
    assert gone.endpoint in finding.text
