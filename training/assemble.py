"""Put trained parts together as a model directory in upstream's layout, and check that it loads.

    python -m training.assemble --corpus CORPUS_DIR --run RUN --store DATA/store --out pretrained_models/lighttts-nano

``RUN`` holds what the trainers wrote: ``tokenizer.pt``, ``speaker.pt``, ``llm.pt``, ``flow.pt``, ``hift.pt``. The
registered voice ``heart`` is the mean speaker embedding of the store.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lighttts.frontend.encode import EncodeEngine
from lighttts.models.directory import QWEN_CONFIG, VOICES_NAME, ModelDirectory, check
from lighttts.models.flow import load_flow
from lighttts.models.hift import load_hift
from lighttts.models.llm import load_llm
from lighttts.models.weights import load_weights
from training import speaker_onnx, tokenizer_onnx
from training.llm import Shape
from training.speaker_encoder import Listener, SpeakerEncoder, load_speaker
from training.store import SAMPLE_RATE, Store, part_names
from training.tokenizer import load_encoder

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "training" / "nano"
VOICE = "heart"
VOICE_SECONDS = 600.0
MOST_BYTES = 60_000_000
WEIGHTS = ("llm.pt", "flow.pt", "hift.pt")
TEXT_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json")


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


@torch.inference_mode()
def voice_of(encoder: SpeakerEncoder, store: Store) -> Tensor:
    """The store's speaker: mean of the normalised embeddings of its first utterances over 1 s, normalised, [192]."""
    listener, pcm = Listener(encoder), store.pcm()
    embeddings = []
    for first, last in zip(store.start[:-1], store.start[1:], strict=True):
        if last > VOICE_SECONDS * SAMPLE_RATE:
            break
        if last - first > SAMPLE_RATE:
            audio = torch.from_numpy(pcm[first:last]).float()[None] / 32768.0
            embeddings.append(F.normalize(listener(audio), dim=1)[0])
    return F.normalize(torch.stack(embeddings).mean(0), dim=0)


def write_text_parts(spec: Path, corpus: Path, shape: Shape, llm: Path, out: Path) -> None:
    """The yaml, the text tokenizer, the Qwen2 configuration, and who is to be thanked for what."""
    (out / QWEN_CONFIG).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(spec, out / "cosyvoice2.yaml")
    for name in TEXT_TOKENIZER:
        shutil.copy(corpus / "CosyVoice-BlankEN" / name, (out / QWEN_CONFIG).parent / name)
    text_ids = len(load_weights(llm)["llm.model.model.embed_tokens.weight"])
    (out / QWEN_CONFIG).write_text(json.dumps(qwen_config(shape, text_ids), indent=2) + "\n")
    for source in (ROOT / "LICENSE", NANO / "NOTICE", NANO / "README.md"):
        shutil.copy(source, out / source.name)


def assemble(spec: Path, corpus: Path, shape: Shape, run: Path, store: Store, out: Path) -> int:
    """Write the directory; its size in bytes. Raises ValueError if it is too large, `ModelError` if it does not load.

    `corpus`: folder of `training.prepare`. `shape`: the language model's, which its weights do not tell.
    """
    write_text_parts(spec, corpus, shape, run / "llm.pt", out)
    for name in WEIGHTS:
        shutil.copy(run / name, out / name)
    tokenizer_onnx.write_onnx(load_encoder(run / "tokenizer.pt"), out / "speech_tokenizer_v2.onnx")
    encoder = load_speaker(run / "speaker.pt")
    speaker_onnx.write_onnx(encoder, out / "campplus.onnx")
    torch.save({VOICE: {"embedding": voice_of(encoder, store)[None].contiguous()}}, out / VOICES_NAME)
    verify(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"{out} holds {size} bytes, {size - MOST_BYTES} more than {MOST_BYTES}")
    return size


def verify(out: Path) -> None:
    """Load every part as the daemons do. Raises `ModelError`, or ValueError with all that is wrong."""
    if problems := check(out):
        raise ValueError("\n".join(problems))
    directory, device = ModelDirectory.open(out), torch.device("cpu")
    load_llm(directory, device)
    load_flow(directory, device)
    load_hift(directory, device)
    EncodeEngine(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "run", "store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    store = Store.open(options.store, part_names(options.store)[:1])
    size = assemble(NANO / "cosyvoice2.yaml", options.corpus, Shape(), options.run, store, options.out)
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
