"""The same network in plain PyTorch, one request at a time: what an engine is measured against.

    python -m benchmarks.plain FOLDER [--requests 3] [--dtype float16]

FOLDER is a model directory of `benchmarks.make_model`. The language model is transformers' Qwen2 with its own cache, a
token at a time, drawn on the host as upstream's `ras_sampling` does. The flow runs over the whole prefix again at each
hop, as upstream streams, and the vocoder over the hop's mel and what it held back. No graph, no compiling, no batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from benchmarks.make_model import PROMPT_TEXT, PROMPT_TOKENS, QWEN, SPEECH_TOKENS
from lighttts.engine.schedule import HopSchedule
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop, load_flow
from lighttts.models.hift import HiFTGenerator, load_hift
from lighttts.models.hift_stream import VocoderHop, vocode

TEXT_TOKENS, TOKENS = 40, 125
TOP_P, TOP_K, WINDOW = 0.8, 25, 10


class PlainLLM(torch.nn.Module):
    """transformers' Qwen2 between an embedding of speech tokens and a head over them, with random weights."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.device(device):
            self.body = Qwen2Model(Qwen2Config(**{**QWEN, "tie_word_embeddings": True})).to(dtype)
            self.speech = torch.nn.Embedding(SPEECH_TOKENS, QWEN["hidden_size"], dtype=dtype)
            self.head = torch.nn.Linear(QWEN["hidden_size"], SPEECH_TOKENS, dtype=dtype)

    def tokens(self, text: Tensor, prompt: Tensor) -> Iterator[int]:
        embedded = torch.cat([self.body.embed_tokens(text), self.speech(prompt)])[None]
        cache, made = None, []
        for _ in range(TOKENS):
            out = self.body(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = self.head(out.last_hidden_state[0, -1]).float()
            made.append(draw(logits.softmax(-1), made))
            yield made[-1]
            embedded = self.speech(torch.tensor([[made[-1]]], device=embedded.device))


def draw(probability: Tensor, made: list[int]) -> int:
    """A token of the nucleus, or one of all if it is among the last ones."""
    mass, order = probability.sort(descending=True, stable=True)
    inside = ((mass.cumsum(0) - mass < TOP_P) & (torch.arange(len(mass), device=mass.device) < TOP_K)).nonzero()[:, 0]
    token = int(order[inside[torch.multinomial(mass[inside], 1)]])
    if token in made[-WINDOW:]:
        token = int(torch.multinomial(probability, 1))
    return token


def speak(
    llm: PlainLLM, flow: CausalMaskedDiffWithXvec, hift: HiFTGenerator, embedding: Tensor, prompt_mel: Tensor, seed: int
) -> Iterator[int]:
    """Samples of each hop of one request, when they are on the host."""
    torch.manual_seed(seed)
    device = flow.device
    text = torch.randint(1000, (PROMPT_TEXT + TEXT_TOKENS,), device=device)
    prompt = torch.randint(SPEECH_TOKENS, (PROMPT_TOKENS,), device=device)
    schedule, state, made = HopSchedule(PROMPT_TOKENS), None, []
    for token in llm.tokens(text, prompt):
        made.append(token)
        while hop := schedule.next(len(made), len(made) == TOKENS):
            tokens = torch.cat([prompt, torch.tensor(made[: hop.given], device=device)])
            [result] = flow.advance([FlowHop(flow.start(embedding, prompt_mel), tokens, hop.final)])
            mel = result.mel[2 * (PROMPT_TOKENS + hop.start) :]
            [vocoded] = vocode(hift, [VocoderHop(state, mel, hop.final, seed)])
            state, schedule = vocoded.state, schedule.after(hop)
            yield len(vocoded.audio.cpu())
            if hop.final:
                return


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Times the same network in plain PyTorch, one request at a time.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--dtype", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    directory = ModelDirectory.open(arguments.folder)
    dtype = getattr(torch, arguments.dtype)
    flow, hift = load_flow(directory, arguments.device, dtype), load_hift(directory, arguments.device)
    llm = PlainLLM(arguments.device, dtype).eval()
    embedding, prompt_mel = torch.randn(flow.config.speaker_size), torch.randn(2 * PROMPT_TOKENS, hift.config.bins)
    print("request   first audio s   whole s   audio s")
    for seed in range(arguments.requests + 1):
        began = time.monotonic()
        samples, first = 0, 0.0
        for count in speak(llm, flow, hift, embedding, prompt_mel, seed):
            first = first or time.monotonic() - began
            samples += count
        whole = time.monotonic() - began
        name = f"{seed:7}" if seed else "warm-up"
        print(f"{name}{first:16.2f}{whole:10.2f}{samples / hift.config.source.sample_rate:10.2f}", flush=True)


if __name__ == "__main__":
    main()
