"""Word error rate of a voice by parts, on the development sentences: which part loses how much.

    python -m training.evaluate --model pretrained_models/lighttts-nano --out EVALUATION

| part | what is heard |
|---|---|
| teacher | the teacher itself |
| mel | its speech as mel, made audio by the vocoder |
| tokens | its speech as tokens, made mel by the flow and audio by the vocoder |
| text | the voice, from text |

Each part is a folder of 000.wav, 001.wav, ..., made by the engines that the daemons run, and heard by
`benchmarks/listener.py` in the environment that `make listener` builds. `EVALUATION/wer.csv` holds the result.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from lighttts.engine.decode import DecodeEngine, VoicePrompt
from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.frontend.audio import read_prompt
from lighttts.frontend.encode import EncodeEngine, EncodeJob
from lighttts.frontend.prompt import PromptExtractor, VoiceFeatures
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.models.hift import load_hift
from lighttts.models.hift_stream import VocoderHop, vocode
from lighttts.models.llm import load_llm
from lighttts.workers.seeds import sentence_seed
from training.assemble import VOICE

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("teacher", "mel", "tokens", "text")
LISTENER = (ROOT / ".listener/venv/bin/python", ROOT / "benchmarks/listener.py")
MAX_LENGTH = 2048

Audio = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


class Voice:
    """A model directory's engines, one request at a time."""

    def __init__(self, model: Path, seed: int) -> None:
        directory, device = ModelDirectory.open(model), torch.device("cpu")
        self.seed = seed
        self.rate = directory.sample_rate
        self.encode = EncodeEngine(directory)
        self.extractor = PromptExtractor(directory)
        self.llm = LLMEngine(load_llm(directory, device), slots=1, max_length=MAX_LENGTH)
        self.hift = load_hift(directory, device)
        self.decode = DecodeEngine(load_flow(directory, device), self.hift, max_batch=1, max_streams=1)

    def features(self, wav: Path) -> VoiceFeatures:
        """Speech tokens and mel of a recording, as of a prompt."""
        return self.extractor.extract(read_prompt(wav.read_bytes(), self.rate))

    @torch.inference_mode()
    def of_mel(self, wav: Path) -> Audio:
        """A recording through the vocoder."""
        mel = torch.from_numpy(self.features(wav).mel)
        audio: Audio = vocode(self.hift, [VocoderHop(None, mel, final=True, seed=self.seed)])[0].audio.numpy()
        return audio

    def of_tokens(self, wav: Path) -> Audio:
        """A recording through speech tokens, flow and vocoder."""
        return self.audio(self.features(wav).tokens, self.encode.encode(EncodeJob("A.", VOICE)).voice, self.seed)

    def of_text(self, text: str) -> Audio:
        """A text, sentence after sentence as the daemons take it."""
        encoded = self.encode.encode(EncodeJob(text, VOICE))
        pieces = []
        for number, sentence in enumerate(encoded.sentences):
            seed = sentence_seed(self.seed, number)
            text_ids = np.concatenate([encoded.prompt_text_ids, sentence.ids])
            none = np.zeros(0, np.int32)
            job = GenerateJob(number, text_ids, len(sentence.ids), encoded.llm_prompt_tokens, seed, none)
            pieces.append(self.audio(self.tokens(job), encoded.voice, seed))
        return np.concatenate(pieces)

    def tokens(self, job: GenerateJob) -> Tokens:
        """The speech tokens of a job."""
        self.llm.add(job)
        tokens: list[int] = []
        while self.llm.busy:
            for step in self.llm.step():
                tokens += step.tokens
        return np.array(tokens, np.int32)

    def audio(self, tokens: Tokens, voice: VoiceFeatures, seed: int) -> Audio:
        """Speech tokens as audio, in the hops of a stream."""
        prompt = VoicePrompt(voice.key, voice.embedding, voice.tokens, voice.mel)
        self.decode.open(0, prompt, seed=seed)
        self.decode.feed(0, tokens, final=True)
        pieces = []
        while self.decode.busy:
            pieces += [step.audio for step in self.decode.step()]
        return np.concatenate(pieces)


def speak_all(voice: Voice, sentences: list[str], parts: list[str], out: Path) -> Iterator[Path]:
    """Write each part's folder, yielding it when it is whole. `mel` and `tokens` start from the teacher's folder."""
    from training.teacher import speech

    recordings = [out / "teacher" / f"{i:03d}.wav" for i in range(len(sentences))]
    for part in parts:
        makers: dict[str, Callable[[int], Audio]] = {
            "teacher": lambda i: speech(sentences[i]),
            "mel": lambda i: voice.of_mel(recordings[i]),
            "tokens": lambda i: voice.of_tokens(recordings[i]),
            "text": lambda i: voice.of_text(sentences[i]),
        }
        (out / part).mkdir(parents=True, exist_ok=True)
        for i in range(len(sentences)):
            soundfile.write(out / part / f"{i:03d}.wav", makers[part](i), voice.rate, subtype="PCM_16")
        yield out / part


def heard(folder: Path, sentences: Path) -> float:
    """Word error rate of a folder in percent. Raises FileNotFoundError if there is no listener."""
    if not LISTENER[0].exists():
        raise FileNotFoundError(f"{LISTENER[0]} is missing; run make listener")
    command = [str(word) for word in (*LISTENER, folder, sentences)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (folder / "heard.txt").write_text(said)
    found = re.search(r"^WER ([\d.]+)%", said, re.MULTILINE)
    if found is None:
        raise ValueError(f"the listener gave no word error rate: {said[-200:]}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "pretrained_models/lighttts-nano")
    parser.add_argument("--sentences", type=Path, default=ROOT / "benchmarks/dev_sentences.txt")
    parser.add_argument("--most", type=int, help="of the sentences, from the first on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sentences = list(filter(None, map(str.strip, options.sentences.read_text().splitlines())))[: options.most]
    (options.out / "sentences.txt").write_text("\n".join(sentences) + "\n")
    voice = Voice(options.model, options.seed)
    with (options.out / "wer.csv").open("a", newline="") as file:
        for folder in speak_all(voice, sentences, options.parts, options.out):
            rate = heard(folder, options.out / "sentences.txt")
            csv.writer(file).writerow([folder.name, len(sentences), rate])
            file.flush()
            print(f"{folder.name}: {rate:.2f}% of words wrong in {len(sentences)} sentences", flush=True)


if __name__ == "__main__":
    main()
