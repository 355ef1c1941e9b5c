"""What the acoustic parts make of real speech: mel -> audio, and speech tokens -> mel -> audio, with shipped weights.

``python -m training.resynthesis --spec cosyvoice2.yaml --run RUN --store DEV --part mel --out FOLDER`` writes
`000.wav`, `001.wav`, ... of the utterances of a store in the order of their sentences; `--part tokens` starts from the
store's speech tokens instead of from its mel.
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop
from lighttts.models.hift import HiFTGenerator, fold_weight_norm
from lighttts.models.weights import load_into, load_weights
from training import flow, hift
from training.features import FlowMel
from training.speaker_encoder import Listener, SpeakerEncoder
from training.store import SAMPLE_RATE, Store

NOISE_SEED = 0


def load_vocoder(spec: Path, weights: Path, device: torch.device) -> HiFTGenerator:
    """The vocoder of a yaml with the weights of a `hift.pt`, for inference."""
    model = HiFTGenerator(hift.read_config(spec))
    load_into(model, load_weights(weights), str(weights))
    fold_weight_norm(model)
    return model.requires_grad_(False).eval().to(device)


def load_flow(spec: Path, weights: Path, device: torch.device) -> CausalMaskedDiffWithXvec:
    """The flow of a yaml with the weights of a `flow.pt`, for inference."""
    model = CausalMaskedDiffWithXvec(flow.read_config(spec))
    load_into(model, load_weights(weights), str(weights))
    return model.requires_grad_(False).eval().to(device)


@torch.inference_mode()
def audio_of_mel(model: HiFTGenerator, mel: Tensor) -> Tensor:
    """Mel [frames, 80] -> audio [frames * 480] float32 at 24 kHz, in one pass."""
    samples = mel.shape[0] * model.config.source.frame
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(NOISE_SEED)).to(mel.device)
    audio: Tensor = model(mel[None], noise)[0][0]
    return audio


@torch.inference_mode()
def mel_of_tokens(model: CausalMaskedDiffWithXvec, tokens: Tensor, voice: Tensor) -> Tensor:
    """Tokens [n] int64, speaker embedding [192] -> mel [2 n, 80], with the chunk mask, as streaming gives it."""
    state = model.start(voice, torch.zeros(0, model.config.estimator.out_channels))
    return model.advance([FlowHop(state, tokens, final=True)])[0].mel


@torch.inference_mode()
def voice_of(encoder: SpeakerEncoder, store: Store, device: torch.device, seconds: float = 600.0) -> Tensor:
    """The store's speaker: mean of the normalised embeddings of its utterances over 1 s, normalised, [192] float32.

    What the bundled voice's `spk2info.pt` holds as `embedding`.
    """
    listener, pcm = Listener(encoder.eval()).to(device), store.pcm()
    embeddings = []
    for first, last in zip(store.start[:-1], store.start[1:], strict=True):
        if last > seconds * SAMPLE_RATE:
            break
        if last - first > SAMPLE_RATE:
            audio = torch.from_numpy(pcm[first:last]).to(device).float()[None] / 32768.0
            embeddings.append(F.normalize(listener(audio), dim=1)[0])
    return F.normalize(torch.stack(embeddings).mean(0), dim=0)


def tokens_of(store: Store) -> list[NDArray[np.int16]]:
    """Each utterance's speech tokens. Raises FileNotFoundError if a part has not been tokenised."""
    rows: list[NDArray[np.int16]] = []
    for name in store.names:
        with np.load(store.folder / f"tokens-{name}.npz", allow_pickle=False) as part:
            rows += np.split(part["token"], np.cumsum(part["tokens"])[:-1])
    return rows


def write_wav(path: Path, audio: Tensor) -> None:
    """Audio [n] float32 as a 16-bit mono wav file at 24 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((audio.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="the model's cosyvoice2.yaml")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of hift.pt and, for tokens, flow.pt, speaker.pt"
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--part", choices=("mel", "tokens"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, store = torch.device(arguments.device), Store.open(arguments.store)
    arguments.out.mkdir(parents=True, exist_ok=True)
    vocoder = load_vocoder(arguments.spec, arguments.run / "hift.pt", device)
    mels = mels_of_tokens(arguments, store, device) if arguments.part == "tokens" else mels_of_audio(store, device)
    for k, i in enumerate(np.argsort(store.sentence, kind="stable")):
        write_wav(arguments.out / f"{k:03d}.wav", audio_of_mel(vocoder, mels[i]))


def mels_of_audio(store: Store, device: torch.device) -> list[Tensor]:
    """Every utterance's own mel, [frames, 80]."""
    features, pcm = FlowMel().to(device), store.pcm()
    spans = zip(store.start[:-1], store.start[1:], strict=True)
    return [features(torch.from_numpy(pcm[a:b]).to(device).float()[None] / 32768.0)[0].T for a, b in spans]


def mels_of_tokens(arguments: argparse.Namespace, store: Store, device: torch.device) -> list[Tensor]:
    """The flow's mel of every utterance's tokens, [frames, 80]."""
    model = load_flow(arguments.spec, arguments.run / "flow.pt", device)
    encoder = SpeakerEncoder()
    encoder.load_state_dict(torch.load(arguments.run / "speaker.pt", weights_only=True))
    voice = voice_of(encoder, store, device)
    return [mel_of_tokens(model, torch.from_numpy(row).to(device).long(), voice) for row in tokens_of(store)]


if __name__ == "__main__":
    main()
