"""The tiny reference model, loaded once, and what its engines make of a request without any worker."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lighttts.engine.decode import DecodeEngine, VoicePrompt
from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.frontend.encode import EncodeEngine
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.models.hift import load_hift
from lighttts.models.llm import load_llm
from lighttts.transport import wire
from lighttts.workers.stage import Stage, work_of

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "golden"
VOICE = "tiny-voice"
SPEECH_TOKENS = 100
NO_TOKENS = np.zeros(0, np.int32)

Ints = npt.NDArray[np.int32]


@cache
def directory() -> ModelDirectory:
    return ModelDirectory.open(GOLDEN / "cosyvoice2-tiny")


@cache
def encode_engine() -> EncodeEngine:
    return EncodeEngine(directory())


@cache
def _llm() -> object:
    return load_llm(directory(), torch.device("cpu"))


def llm_engine(slots: int = 4, max_length: int = 512) -> LLMEngine:
    return LLMEngine(_llm(), slots=slots, max_length=max_length)  # type: ignore[arg-type]


@cache
def _decoders() -> tuple[object, object]:
    return load_flow(directory()), load_hift(directory())


def decode_engine(streams: int = 4) -> DecodeEngine:
    return DecodeEngine(*_decoders(), max_batch=4, max_streams=streams)  # type: ignore[arg-type]


def give(stage: Stage, message: wire.Message, seat: int = 0) -> None:
    """Has `stage` accept what a broker sent."""
    stage.accept(work_of(message, seat), message)


def generated(text: Ints, prompt_text: Ints, prompt: Ints, seed: int) -> list[int]:
    """Speech tokens of one sentence."""
    engine = llm_engine(slots=1)
    engine.add(GenerateJob("alone", np.concatenate([prompt_text, text]), len(text), prompt, seed, NO_TOKENS))
    return [token for step in _steps(engine) for token in step.tokens]


def decoded(tokens: Ints, voice: VoicePrompt, seed: int, output: str = "audio", speed: float = 1.0) -> np.ndarray:
    """Audio (n,) or mel (n, 80) of one sentence, given hop by hop what each hop needs, as it would be when streamed."""
    engine = decode_engine(streams=1)
    engine.open("alone", voice, seed=seed, output=output, speed=speed)  # type: ignore[arg-type]
    engine.feed("alone", tokens, final=True)
    steps = _steps(engine)
    return np.concatenate([step.mel if output == "mel" else step.audio for step in steps])


def _steps(engine: LLMEngine | DecodeEngine) -> list:
    steps = []
    while engine.busy:
        steps += engine.step()
    return steps
