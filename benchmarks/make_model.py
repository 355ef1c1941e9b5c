"""Makes a model directory of CosyVoice2-0.5B's published dimensions with random weights: for speed, not for sound.

    python -m benchmarks.make_model FOLDER [--seed N]

End of speech is never drawn, so a request makes tokens up to `llm.max_length`. With the voice `zero-shot` (a prompt of
75 speech tokens, 3 s of mel and `PROMPT_TEXT` text tokens) and a text of 40 tokens, `max_length(40, 125)` makes exactly
125 of them: 5 s of audio. The text tokenizer and the ONNX files are those of the tests' tiny model.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from torch import nn

from lighttts.models.directory import QWEN_CONFIG, VOICES_NAME, ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec
from lighttts.models.flow_config import FlowConfig
from lighttts.models.hift import HiFTGenerator
from lighttts.models.hift_config import HiFTConfig
from lighttts.models.llm import build_llm

SMALL = Path(__file__).resolve().parents[1] / "tests" / "golden" / "cosyvoice2-tiny"
PROMPT_TEXT, PROMPT_TOKENS = 12, 75
SPEECH_TOKENS = 6561
QWEN = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "max_window_layers": 24,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
}
YAML = {
    "llm_input_size": "896",
    "llm_output_size": "896",
    "speech_token_size": str(SPEECH_TOKENS),
    "vocab_size": str(SPEECH_TOKENS),
    "flow.input_size": "512",
    "flow.encoder.output_size": "512",
    "flow.encoder.attention_heads": "8",
    "flow.encoder.linear_units": "2048",
    "flow.encoder.num_blocks": "6",
    "flow.encoder.input_size": "512",
    "flow.decoder.estimator.channels": "[256]",
    "flow.decoder.estimator.attention_head_dim": "64",
    "flow.decoder.estimator.n_blocks": "4",
    "flow.decoder.estimator.num_mid_blocks": "12",
    "flow.decoder.estimator.num_heads": "8",
    "hift.base_channels": "512",
    "hift.f0_predictor.cond_channels": "512",
}
"""What the published yaml has, by the end of the key's path."""


def max_length(text_tokens: int, speech_tokens: int) -> int:
    """The `llm.max_length` with which the voice `zero-shot` makes exactly so many speech tokens of such a text."""
    return 2 + PROMPT_TEXT + text_tokens + PROMPT_TOKENS + speech_tokens - 1


def published(yaml: str) -> str:
    """The text of a small model's yaml with the published dimensions."""
    path: list[tuple[int, str]] = []
    lines = []
    for line in yaml.splitlines():
        match = re.match(r"^( *)(\w+):( *)(.*)$", line)
        if match:
            indent, key = len(match[1]), match[2]
            path = [entry for entry in path if entry[0] < indent] + [(indent, key)]
            full = ".".join(name for _, name in path)
            value = next((value for name, value in YAML.items() if full == name or full.endswith(f".{name}")), None)
            if value is not None and not match[4].startswith("!ref"):
                line = f"{match[1]}{key}: {value}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def shake(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The state of a model whose every matrix has random weights that keep a signal's size."""
    torch.manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() > 1 and not name.endswith("weight_g"):
            tensor.normal_(0.0, 0.5 * tensor[0].numel() ** -0.5)
    return {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}


def make(folder: Path, seed: int) -> None:
    """Writes the directory."""
    (folder / QWEN_CONFIG).parent.mkdir(parents=True, exist_ok=True)
    for name in ("campplus.onnx", "speech_tokenizer_v2.onnx"):
        shutil.copy(SMALL / name, folder / name)
    for path in (SMALL / QWEN_CONFIG).parent.iterdir():
        shutil.copy(path, (folder / QWEN_CONFIG).parent / path.name)
    config = json.loads((SMALL / QWEN_CONFIG).read_text())
    (folder / QWEN_CONFIG).write_text(json.dumps({**config, **QWEN}, indent=2) + "\n")
    (folder / "cosyvoice2.yaml").write_text(published((SMALL / "cosyvoice2.yaml").read_text()))
    directory = ModelDirectory.open(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        llm = build_llm(directory)
    flow = CausalMaskedDiffWithXvec(FlowConfig.read(directory.settings))
    hift = HiFTGenerator(HiFTConfig.read(directory.settings))
    weights = shake(llm, seed)
    weights["llm_decoder.bias"][SPEECH_TOKENS:] = -1e4
    torch.save(weights, folder / "llm.pt")
    torch.save(shake(flow, seed), folder / "flow.pt")
    torch.save(shake(hift, seed), folder / "hift.pt")
    torch.save({"zero-shot": voice(seed)}, folder / VOICES_NAME)


def voice(seed: int) -> dict[str, torch.Tensor]:
    """A registered zero-shot voice with a prompt of 3 s."""
    torch.manual_seed(seed)
    tokens = torch.randint(SPEECH_TOKENS, (1, PROMPT_TOKENS), dtype=torch.int32)
    return {
        "prompt_text": torch.randint(100, (1, PROMPT_TEXT), dtype=torch.int32),
        "llm_prompt_speech_token": tokens,
        "flow_prompt_speech_token": tokens,
        "prompt_speech_feat": torch.randn(1, 2 * PROMPT_TOKENS, 80) - 6.0,
        "embedding": torch.nn.functional.normalize(torch.randn(1, 192)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.folder, options.seed)
    print(f"{options.folder} is ready; for 5 s of a text of 40 tokens: --set llm.max_length={max_length(40, 125)}")


if __name__ == "__main__":
    main()
