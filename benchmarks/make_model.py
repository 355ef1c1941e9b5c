"""Makes a model directory of CosyVoice2-0.5B's published dimensions with random weights: for speed, not for sound.

    python -m benchmarks.make_model FOLDER [--seed N] [--version 3]

End of speech is never drawn, so a request makes tokens up to `llm.max_length`. With the voice `zero-shot` (a prompt of
75 speech tokens, 3 s of mel and `PROMPT_TEXT` text tokens) and a text of 40 tokens, `max_length(40, 125)` makes exactly
125 of them: 5 s of audio. The text tokenizer and the ONNX files are those of the tests' tiny model.

With version 3 the dimensions are those of CosyVoice3-0.5B. Its head has no bias, so that a stop token is drawn now and
then, and its prompt text is longer by an instruction.
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
from lighttts.models.flow import build_flow
from lighttts.models.hift import build_hift
from lighttts.models.llm import build_llm

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
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
COMMON = {
    "llm_input_size": "896",
    "llm_output_size": "896",
    "speech_token_size": str(SPEECH_TOKENS),
    "vocab_size": str(SPEECH_TOKENS),
    "hift.base_channels": "512",
    "hift.f0_predictor.cond_channels": "512",
}
YAML_2 = {
    **COMMON,
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
}
YAML_3 = {
    **COMMON,
    "flow.pre_lookahead_layer.channels": "1024",
    "flow.decoder.estimator.dim": "1024",
    "flow.decoder.estimator.depth": "22",
    "flow.decoder.estimator.heads": "16",
    "flow.decoder.estimator.dim_head": "64",
}
"""What the published yaml has, by the end of the key's path."""


def max_length(text_tokens: int, speech_tokens: int) -> int:
    """The `llm.max_length` with which the voice `zero-shot` makes exactly so many speech tokens of such a text."""
    return 2 + PROMPT_TEXT + text_tokens + PROMPT_TOKENS + speech_tokens - 1


def published(yaml: str, values: dict[str, str]) -> str:
    """The text of a small model's yaml with the published dimensions."""
    path: list[tuple[int, str]] = []
    lines = []
    for line in yaml.splitlines():
        match = re.match(r"^( *)(\w+):( *)(.*)$", line)
        if match:
            indent, key = len(match[1]), match[2]
            path = [entry for entry in path if entry[0] < indent] + [(indent, key)]
            full = ".".join(name for _, name in path)
            value = next((value for name, value in values.items() if full == name or full.endswith(f".{name}")), None)
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


def make(folder: Path, seed: int, version: int = 2) -> None:
    """Writes the directory."""
    small, yaml = GOLDEN / f"cosyvoice{version}-tiny", f"cosyvoice{version}.yaml"
    (folder / QWEN_CONFIG).parent.mkdir(parents=True, exist_ok=True)
    for name in ("campplus.onnx", f"speech_tokenizer_v{version}.onnx"):
        shutil.copy(small / name, folder / name)
    for path in (small / QWEN_CONFIG).parent.iterdir():
        shutil.copy(path, (folder / QWEN_CONFIG).parent / path.name)
    config = json.loads((small / QWEN_CONFIG).read_text())
    (folder / QWEN_CONFIG).write_text(json.dumps({**config, **QWEN}, indent=2) + "\n")
    (folder / yaml).write_text(published((small / yaml).read_text(), YAML_2 if version == 2 else YAML_3))
    directory = ModelDirectory.open(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        llm = build_llm(directory)
    weights = shake(llm, seed)
    if version == 2:
        weights["llm_decoder.bias"][SPEECH_TOKENS:] = -1e4
    else:
        weights["llm_decoder.weight"][SPEECH_TOKENS:] = 0.0
    torch.save(weights, folder / "llm.pt")
    torch.save(shake(build_flow(directory), seed), folder / "flow.pt")
    torch.save(shake(build_hift(directory), seed), folder / "hift.pt")
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
    parser.add_argument("--version", type=int, choices=(2, 3), default=2, help="of CosyVoice")
    options = parser.parse_args()
    make(options.folder, options.seed, options.version)
    print(f"{options.folder} is ready; for 5 s of a text of 40 tokens: --set llm.max_length={max_length(40, 125)}")


if __name__ == "__main__":
    main()
