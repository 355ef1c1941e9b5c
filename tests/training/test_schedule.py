"""The script for a GPU machine: whatever fails or hangs, it ends in time with what there is."""

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "training/schedule.sh"

MODULES = """#!/bin/bash
# Stands for python3: each training module as the files it leaves. Calls are noted; what HANGS or FAILS_ONCE does so.
shift; module=${1#training.}; shift
while [ $# -gt 0 ]; do
  case $1 in --out|--store|--init) declare "${1#--}=$2" ;; esac
  shift
done
echo "$module ${init:-}" >>"$NOTES"
[ "$module" != "$HANGS" ] || sleep 1000
if [ "$module" = "$FAILS_ONCE" ] && [ "$(grep -c "^$module" "$NOTES")" = 1 ]; then echo "a bad day"; exit 1; fi
case $module in
  generate) mkdir -p "$out"; touch "$out"/part-{1..3}.npz ;;
  warp) mkdir -p "$out"; touch "$out"/part-{1..24}.npz ;;
  tokenize_store) for part in "$store"/part-*.npz; do touch "${part/part-/tokens-}"; done ;;
  train_tokenizer) echo "new tokenizer" >"$out/tokenizer.pt" ;;
  train_llm) echo "new llm" >"$out/llm.pt"; echo loss >"$out/llm.csv" ;;
  *) echo "new $module" >"$out/$module.pt" ;;
esac
"""


@pytest.fixture
def schedule(tmp_path):
    """Runs the script with stand-ins for the modules; gives its output and the notes of what was called."""
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text(MODULES)
    python.chmod(0o755)
    (tmp_path / "parts").mkdir()
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "NOTES": str(tmp_path / "notes")}

    def run(**settings: str) -> tuple[str, list[str]]:
        folders = [tmp_path / name for name in ("parts", "run", "result")]
        told = environment | {"HANGS": "", "FAILS_ONCE": "", "LIMIT": "60"} | settings
        done = subprocess.run([SCRIPT, *folders], env=told, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout, [line.strip() for line in (tmp_path / "notes").read_text().splitlines()]

    return run


def results(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (tmp_path / "result").glob("*.pt")}


def test_from_a_corpus_to_all_weights(schedule, tmp_path):
    output, notes = schedule()
    names = ("tokenizer", "speaker", "llm", "flow", "hift")
    assert results(tmp_path) == {f"{name}.pt": f"new {name}\n" for name in names}
    assert output.rstrip().endswith("done")
    assert notes.index("warp") < notes.index("speaker")
    assert notes.index("train_tokenizer") < notes.index("tokenize_store") < notes.index("flow")
    with tarfile.open(tmp_path / "result/logs.tgz") as logs:
        assert {"schedule.log", "flow.log", "llm.csv"} <= set(logs.getnames())


def test_finished_parts_are_kept_and_weights_are_gone_on_from(schedule, tmp_path):
    for name in ("tokenizer", "speaker", "llm"):
        (tmp_path / "parts" / f"{name}.pt").write_text(f"old {name}\n")
    _, notes = schedule(TRAIN="flow llm")
    assert results(tmp_path) == {
        "tokenizer.pt": "old tokenizer\n",
        "speaker.pt": "old speaker\n",
        "llm.pt": "new llm\n",
        "flow.pt": "new flow\n",
    }
    assert f"train_llm {tmp_path / 'parts/llm.pt'}" in notes
    assert "flow" in notes
    assert not {"train_tokenizer", "speaker", "hift"} & set(notes)


def test_what_fails_is_started_again(schedule, tmp_path):
    output, notes = schedule(FAILS_ONCE="flow")
    assert notes.count("flow") == 2
    assert "a bad day" in output
    assert "flow.pt" in results(tmp_path)


def test_what_hangs_does_not_keep_the_rest(schedule, tmp_path):
    start = time.monotonic()
    schedule(HANGS="flow", LIMIT="18", PIECES="1K")
    assert time.monotonic() - start < 18
    pieces = sorted((tmp_path / "result").glob("voice.tar.*"))
    assert len(pieces) > 1
    whole = tmp_path / "voice.tar"
    whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(whole) as archive:
        assert sorted(archive.getnames()) == ["hift.pt", "llm.pt", "speaker.pt", "tokenizer.pt"]
    left = [line for line in _commands() if str(tmp_path) in line]
    assert left == []


def _commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found
