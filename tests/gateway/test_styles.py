"""A model directory with several language models, from `lighttts-cli up` to the doors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

from lighttts.client import Client
from tests.gateway.process import Gateway
from tests.system.stack import ROOT, TINY

STYLES = [{"style_name": "calm", "llm_path": "llm.pt"}, {"style_name": "lively", "llm_path": "lively.pt"}]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stack whose two styles share all weights but the last layer of their language models."""
    folder = tmp_path_factory.mktemp("s")
    model = Path(shutil.copytree(TINY, folder / "tiny"))
    weights = torch.load(model / "llm.pt", weights_only=True)
    weights["llm_decoder.bias"] = weights["llm_decoder.bias"].flip(0)
    torch.save(weights, model / "lively.pt")
    (model / "style_config.json").write_text(json.dumps({"lora_info": STYLES}))
    settings = [f"broker.{name}=ipc://{folder}/{name}" for name in ("clients", "workers", "results")]
    settings += [f"{name}.metrics_port=null" for name in ("broker", "encode", "llm", "decode")]
    flags = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-m", "lighttts.cli.main", "up", "--model", str(model), *flags]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True)
    with process:
        assert process.stdout
        ready = process.stdout.readline()
        assert "1 encode, 2 llm, 1 decode" in ready, (folder / "log").read_text()
        yield f"ipc://{folder}/clients"
        process.terminate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def gateway(endpoint: str) -> Iterator[Gateway]:
    with Gateway(endpoint) as running:
        yield running


def test_each_style_speaks_in_its_own_way(endpoint: str) -> None:
    with Client(endpoint, timeout=60) as client:
        spoken = {
            style: client.synthesize("Hello.", style=style, seed=1, output="tokens").audio().tolist()
            for style in ("", "calm", "lively")
        }
    assert spoken[""] == spoken["calm"] != spoken["lively"]


def test_upstream_clients_are_told_the_styles_and_choose_one(gateway: Gateway, prompt_wav: bytes) -> None:
    url = gateway.url
    assert requests.get(f"{url}/query_tts_model").json() == {"tts_models": ["calm", "lively"]}
    for name, status in (("lively", 200), ("default", 200), ("angry", 400)):
        data = {"tts_text": "Hello.", "prompt_text": "hello world", "tts_model_name": name}
        answer = requests.post(f"{url}/inference_zero_shot", data=data, files={"prompt_wav": prompt_wav})
        assert answer.status_code == status, answer.text


def test_openai_clients_choose_one_as_a_model(gateway: Gateway) -> None:
    url = gateway.url
    assert [model["id"] for model in requests.get(f"{url}/v1/models").json()["data"]] == ["tiny", "calm", "lively"]
    for name, status in (("lively", 200), ("tts-1", 200), ("angry", 404)):
        body = {"model": name, "input": "Hello.", "voice": "tiny-voice", "response_format": "pcm"}
        assert requests.post(f"{url}/v1/audio/speech", json=body).status_code == status
