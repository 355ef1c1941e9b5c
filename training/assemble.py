"""Put trained parts together as a model directory in upstream's layout.

    python -m training.assemble --corpus CORPUS_DIR --run RUN --tokenizer RUN/tokenizer/encoder.pt --store DATA/store \\
        --out pretrained_models/lighttts-nano

``RUN`` holds what the trainers wrote: ``llm.pt``, ``flow.pt``, ``hift.pt``, ``speaker.pt``, ``campplus.onnx``. The
registered voice ``heart`` is the mean speaker embedding of the store. Raises ValueError if the directory outgrows 60
MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from training.llm import Shape
from training.resynthesis import voice_of
from training.speaker_encoder import SpeakerEncoder
from training.store import Store, part_names
from training.tokenizer_onnx import write_onnx
from training.train_llm import TEXT_IDS
from training.train_tokenizer import load_encoder

SPEC = Path(__file__).parent / "nano" / "cosyvoice2.yaml"
VOICE = "heart"
MOST_BYTES = 60_000_000


def qwen_config(shape: Shape, text_ids: int) -> dict[str, object]:
    """``CosyVoice-BlankEN/config.json`` of a language model."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "max_position_embeddings": 4096,
        "max_window_layers": shape.layers,
        "model_type": "qwen2",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": text_ids,
    }


def write_text_parts(corpus: Path, out: Path) -> None:
    """The yaml, the text tokenizer and the Qwen2 configuration."""
    folder = out / "CosyVoice-BlankEN"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SPEC, out / SPEC.name)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(corpus / "CosyVoice-BlankEN" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(qwen_config(Shape(), TEXT_IDS), indent=2) + "\n")


def assemble(args: argparse.Namespace) -> None:
    write_text_parts(args.corpus, args.out)
    for name in ("llm.pt", "flow.pt", "hift.pt", "campplus.onnx"):
        shutil.copy(args.run / name, args.out / name)
    write_onnx(load_encoder(args.tokenizer), args.out / "speech_tokenizer_v2.onnx")
    store = Store.open(args.store, part_names(args.store)[:1])
    encoder = SpeakerEncoder()
    encoder.load_state_dict(torch.load(args.run / "speaker.pt", weights_only=True))
    embedding = voice_of(encoder, store, torch.device("cpu"))
    torch.save({VOICE: {"embedding": embedding[None].contiguous()}}, args.out / "spk2info.pt")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"{args.out} holds {size} bytes, more than {MOST_BYTES}")
    print(f"{args.out}: {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "run", "tokenizer", "store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    assemble(parser.parse_args())


if __name__ == "__main__":
    main()
