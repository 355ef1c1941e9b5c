"""CosyVoice's language model: text tokens in, speech tokens out (Du et al., arXiv:2412.10117 and arXiv:2505.17589).

Follows upstream's `cosyvoice/llm/llm.py`: `Qwen2LM` of CosyVoice2 and `CosyVoice3LM`. A sequence is `[sos, prompt text
+ text, task id, prompt speech, speech]`; the head predicts the next speech token or one of the stop tokens. The two
differ in where these ids are embedded, which `Vocabulary` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lighttts.errors import ModelError
from lighttts.models.directory import QWEN_CONFIG, ModelDirectory
from lighttts.models.qwen2 import CausalAttend, Qwen2, Qwen2Config, Rotation, embedding, initialise, rotary_table
from lighttts.models.sampling import Sampling
from lighttts.models.weights import load_into

MIN_SPEECH_PER_TEXT = 2
"""Speech tokens a text token before which the end of speech is not accepted, as in upstream's inference."""
MAX_SPEECH_PER_TEXT = 20
"""Speech tokens a text token at which generation ends, as in upstream's inference."""

_UNUSED_WEIGHTS = frozenset({"llm.model.lm_head.weight"})
"""Published with the Qwen2 model, but nothing predicts text tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """The ids of everything a sequence is made of, in one numbering: text, then task tokens, then speech and stops.

    Each of these ranges is embedded by a table of its own. Speech ids proper are those of the speech tokenizer,
    0..speech-1; the head gives them and the `stops` after them.
    """

    text: int
    """Number of text tokens."""
    task: int
    """Number of task tokens with a table of their own; 0 where they are among the stops."""
    speech: int
    """Number of speech tokens proper."""
    stops: int
    """Number of ids after them, each of which ends a sequence if the head gives it."""
    sos: int
    """Sequence id of the start."""
    task_id: int
    """Sequence id between text and speech."""
    end_of_speech: int
    """The id of the head that is excluded until the minimum length is reached."""
    fill: int
    """The id of the head that asks for more text."""

    @property
    def speech_offset(self) -> int:
        """Sequence id of speech token 0."""
        return self.text + self.task

    def sequence(self, text: npt.ArrayLike, speech: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Sequence ids of `[sos, text, task id, speech]` for text token ids and speech token ids."""
        speech_ids = np.asarray(speech, np.int64) + self.speech_offset
        return np.concatenate([[self.sos], np.asarray(text, np.int64), [self.task_id], speech_ids])


class SpeechLM(nn.Module):
    """A Qwen2 body with embeddings for task and speech tokens and a head over speech and stop tokens."""

    def __init__(
        self, config: Qwen2Config, vocabulary: Vocabulary, sampling: Sampling, *, head_bias: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.sampling = sampling
        speech = vocabulary.speech + vocabulary.stops
        # The nesting gives the published names, llm.model.model.*: a wrapper around Qwen2ForCausalLM around Qwen2.
        self.llm = nn.ModuleDict({"model": nn.ModuleDict({"model": Qwen2(config)})})
        if vocabulary.task:
            self.llm_embedding = embedding(vocabulary.task, config.width)
        self.speech_embedding = embedding(speech, config.width)
        self.llm_decoder = nn.Linear(config.width, speech, bias=head_bias)
        initialise(self, config.init_std)

    @property
    def body(self) -> Qwen2:
        wrapper = self.llm["model"]
        assert isinstance(wrapper, nn.ModuleDict)
        body = wrapper["model"]
        assert isinstance(body, Qwen2)
        return body

    @property
    def device(self) -> torch.device:
        return self.llm_decoder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.llm_decoder.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., width] of sequence ids [...]."""
        text, task, offset = self.vocabulary.text, self.vocabulary.task, self.vocabulary.speech_offset
        chosen = ids.unsqueeze(-1)
        embedded: Tensor = self.speech_embedding((ids - offset).clamp(min=0))
        if task:
            embedded = torch.where(chosen < offset, self.llm_embedding((ids - text).clamp(0, task - 1)), embedded)
        return torch.where(chosen < text, self.body.embed_tokens(ids.clamp(max=text - 1)), embedded)

    def input_table(self) -> Tensor:
        """Embeddings [task + speech + stops, width] of the sequence ids after those of text."""
        speech = self.speech_embedding.weight
        return torch.cat([self.llm_embedding.weight, speech]) if self.vocabulary.task else speech

    def rotary_table(self, length: int) -> Tensor:
        """See `lighttts.models.qwen2.rotary_table`, on the model's device and in its dtype."""
        return rotary_table(self.config, length, self.device, self.dtype)

    def forward(self, embedded: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [batch, time, speech + stops] over the next token at each position.

        `embedded` [batch, time, width] from `embed`, sequences padded at the end; `mask` bool [batch, time] is True at
        real positions. Without a mask the padding is attended to by padding only, which is the same for real positions.
        """
        cosine, sine = self.rotary_table(embedded.shape[1])
        logits: Tensor = self.llm_decoder(self.body(embedded, Rotation(cosine, sine), CausalAttend(mask)))
        return logits


def _cosyvoice2_vocabulary(text: int, speech: int) -> Vocabulary:
    return Vocabulary(
        text=text,
        task=2,
        speech=speech,
        stops=3,
        sos=text,
        task_id=text + 1,
        end_of_speech=speech,
        fill=speech + 2,
    )


def _cosyvoice3_vocabulary(text: int, speech: int) -> Vocabulary:
    return Vocabulary(
        text=text,
        task=0,
        speech=speech,
        stops=200,
        sos=text + speech,
        task_id=text + speech + 2,
        end_of_speech=speech + 1,
        fill=speech + 3,
    )


_VOCABULARIES = {"Qwen2LM": _cosyvoice2_vocabulary, "CosyVoice3LM": _cosyvoice3_vocabulary}
"""What the class named by the yaml's `llm` numbers its sequences by, given the numbers of text and speech tokens."""


def build_llm(directory: ModelDirectory) -> SpeechLM:
    """The language model that a directory's yaml and Qwen2 configuration describe, with fresh parameters."""
    llm = directory.settings.section("llm")
    config = Qwen2Config.read(directory.qwen_config())
    if llm.class_name not in _VOCABULARIES:
        known = " or ".join(_VOCABULARIES)
        raise ModelError(f"{llm.name}: llm is a {llm.class_name or 'plain mapping'}; a model with {known} is needed.")
    for key in ("llm_input_size", "llm_output_size"):
        if llm.integer(key) != config.width:
            raise ModelError(
                f"{llm.name}: llm.{key} is {llm.integer(key)} but {QWEN_CONFIG} has a hidden_size of {config.width}; "
                "the two files are not of one model."
            )
    vocabulary = _VOCABULARIES[llm.class_name](config.vocabulary, llm.integer("speech_token_size"))
    sampling = Sampling.read(llm.section("sampling"))
    return SpeechLM(config, vocabulary, sampling, head_bias=llm.class_name == "Qwen2LM")


def load_llm(
    directory: ModelDirectory, device: torch.device, dtype: torch.dtype = torch.float32, style: str = ""
) -> SpeechLM:
    """The published language model of a directory in `style` ("": its default) on `device` in `dtype`, set to evaluate.

    Raises `ModelError`.
    """
    name = directory.styles[directory.style(style)]
    with torch.device("meta"):
        model = build_llm(directory)
    weights = directory.load_weights(name, keep_half=True)
    used = {key: tensor.to(device, dtype, copy=True) for key, tensor in weights.items() if key not in _UNUSED_WEIGHTS}
    load_into(model, used, str(directory.root / name), assign=True)
    return model.eval()
