"""The files that put LightTTS on a machine: systemd units, launchers, Makefile."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "systemd").iterdir())


def _sections(unit: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit.read_text())
    return parsed


@pytest.mark.parametrize(
    "unit", [u for u in UNITS if u.suffix == ".service" and u.stem != "lighttts-mps"], ids=lambda unit: unit.name
)
def test_a_service_unit_starts_its_daemon_under_the_watchdog(unit: Path) -> None:
    service = _sections(unit)["Service"]
    daemon = unit.name.removesuffix(".service").removesuffix("@")
    assert f"/bin/{daemon} --config /etc/lighttts/lighttts.yaml" in service["ExecStart"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert int(service["LimitNOFILE"]) >= 65536


def test_the_target_brings_up_one_of_each_daemon_with_a_process_for_each_role() -> None:
    wants = _sections(ROOT / "systemd/lighttts.target")["Unit"]["Wants"].split()
    provided = {unit.name for unit in UNITS}
    chosen = {"lighttts-gpu@.service", "lighttts-gateway.service"}
    services = {unit for unit in provided if unit.endswith(".service")}
    assert {re.sub(r"@\d+\.", "@.", want) for want in wants} == services - chosen


@pytest.mark.parametrize("role", ["llm", "decode"])
def test_workers_of_one_gpu_share_it_through_mps_where_there_is_one(role: str) -> None:
    mps, worker = (_sections(ROOT / f"systemd/{name}.service") for name in ("lighttts-mps", f"lighttts-{role}@"))
    pipes = "CUDA_MPS_PIPE_DIRECTORY=/run/lighttts-mps"
    assert pipes in (ROOT / "systemd/lighttts-mps.service").read_text()
    assert pipes in (ROOT / f"systemd/lighttts-{role}@.service").read_text()
    assert mps["Service"]["RuntimeDirectory"] == "lighttts-mps"
    assert mps["Service"]["User"] == worker["Service"]["User"]
    assert "lighttts-mps.service" in worker["Unit"]["After"]
    assert "ConditionFileIsExecutable" in mps["Unit"]


def test_each_console_script_has_a_launcher() -> None:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    scripts = re.findall(r"^(\S+) = ", parsed["options.entry_points"]["console_scripts"], re.MULTILINE)
    assert sorted(path.name for path in (ROOT / "bin").iterdir()) == sorted(scripts)


def test_an_installation_has_every_file_of_the_package() -> None:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    packed = {
        path
        for package, patterns in parsed["options.package_data"].items()
        for pattern in patterns.split()
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    others = {path for path in (ROOT / "lighttts").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert packed == others != set()


def test_the_makefile_explains_its_targets() -> None:
    listing = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test", "lint", "chaos", "bench"} <= {line.split()[0] for line in listing.splitlines()}
