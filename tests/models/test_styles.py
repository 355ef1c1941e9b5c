"""style_config.json: several language models in one directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory, check
from lighttts.models.llm import load_llm
from lighttts.models.styles import read_styles

TINY = Path(__file__).parents[1] / "golden/cosyvoice2-tiny"


def describe(root: Path, *styles: tuple[str, str]) -> None:
    entries = [{"style_name": name, "llm_path": file} for name, file in styles]
    (root / "style_config.json").write_text(json.dumps({"lora_info": entries}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two styles of the tiny model: `calm`, which is the default, has another output bias than `lively`."""
    root = Path(shutil.copytree(TINY, tmp_path / "model"))
    weights = torch.load(root / "llm.pt", weights_only=True)
    weights["llm_decoder.bias"] = weights["llm_decoder.bias"] + 1
    torch.save(weights, root / "calm.pt")
    describe(root, ("calm", "calm.pt"), ("lively", "llm.pt"))
    return root


def test_without_the_file_there_is_one_style_without_a_name() -> None:
    directory = ModelDirectory.open(TINY)
    assert directory.styles == {"": "llm.pt"}
    assert directory.style("") == ""


def test_the_first_style_is_the_default(model: Path) -> None:
    directory = ModelDirectory.open(model)
    assert [directory.style(name) for name in ("", "calm", "lively")] == ["calm", "calm", "lively"]


def test_each_style_has_its_weights(model: Path) -> None:
    directory = ModelDirectory.open(model)
    cpu = torch.device("cpu")
    biases = [load_llm(directory, cpu, style=style).llm_decoder.bias for style in ("", "lively")]
    assert torch.equal(biases[0], biases[1] + 1)
    assert check(model) == []


def test_the_hash_of_a_model_covers_the_weights_of_all_styles(model: Path) -> None:
    before = ModelDirectory.open(model).model_hash
    shutil.copy(model / "llm.pt", model / "calm.pt")
    assert ModelDirectory.open(model).model_hash != before


def test_an_unknown_style_is_refused_with_those_there_are(model: Path) -> None:
    with pytest.raises(ModelError, match="'angry'; its styles are calm, lively"):
        ModelDirectory.open(model).style("angry")
    with pytest.raises(ModelError, match=r"no style_config\.json"):
        ModelDirectory.open(TINY).style("calm")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "names no styles"),
        ('{"lora_info": []}', "names no styles"),
        ('{"lora_info": [1]}', "without its name or path"),
        ('{"lora_info": [{"style_name": "a"}]}', "without its name or path"),
        ('{"lora_info": [{"style_name": "a:b", "llm_path": "llm.pt"}]}', "no colon"),
        ('{"lora_info": [{"style_name": "", "llm_path": "llm.pt"}]}', "1 to 32 characters"),
        ('{"lora_info": [{"style_name": "a", "llm_path": "../llm.pt"}]}', "outside the model directory"),
        ('{"lora_info": [{"style_name": "a", "llm_path": "/etc/passwd"}]}', "outside the model directory"),
        (json.dumps({"lora_info": [{"style_name": "a", "llm_path": "llm.pt"}] * 2}), "twice"),
        (" " * (2 << 20), "not valid JSON"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "style_config.json").write_text(content)
    with pytest.raises(ModelError, match=said) as caught:
        read_styles(tmp_path)
    assert "style_config.json" in caught.value.text


def test_check_names_missing_weights_and_a_bad_file(model: Path) -> None:
    (model / "calm.pt").unlink()
    assert any("calm.pt is missing" in sentence for sentence in check(model))
    (model / "style_config.json").write_text("{")
    assert any("style_config.json" in sentence for sentence in check(model))
