"""The training model is the model that is served, and learns where in the text it is."""

import numpy as np
import torch

from lighttts.models.llm import SpeechLM as Served
from lighttts.models.llm import Vocabulary
from lighttts.models.qwen2 import Qwen2Config
from lighttts.models.sampling import Sampling
from lighttts.models.weights import load_into
from training.llm import Shape, SpeechLM, guide_loss, visible
from training.packing import Layout

LAYOUT = Layout(text=40, speech=30)
SHAPE = Shape(hidden=32, layers=3, heads=4, kv_heads=2, inner=48, dropout=0.0, guided=(1,))


def served(model: SpeechLM) -> Served:
    config = Qwen2Config(
        vocabulary=LAYOUT.text,
        width=SHAPE.hidden,
        inner=SHAPE.inner,
        layers=SHAPE.layers,
        heads=SHAPE.heads,
        kv_heads=SHAPE.kv_heads,
        head_width=SHAPE.head,
        norm_epsilon=SHAPE.eps,
        rope_theta=SHAPE.rope_theta,
        init_std=0.02,
    )
    vocabulary = Vocabulary(
        text=LAYOUT.text,
        task=2,
        speech=LAYOUT.speech,
        stops=3,
        sos=LAYOUT.sos,
        task_id=LAYOUT.task,
        end_of_speech=LAYOUT.speech,
        fill=LAYOUT.speech + 2,
    )
    sampling = Sampling(top_p=0.8, top_k=25, win_size=10, tau_r=0.1)
    made = Served(config, vocabulary, sampling)
    weights = {k: v.detach() for k, v in model.published().items() if k != "llm.model.lm_head.weight"}
    load_into(made, weights, "llm.pt")
    return made.eval()


def documents(rng: np.random.Generator, lengths: list[int]) -> list[np.ndarray]:
    return [rng.integers(0, LAYOUT.size - 3, n) for n in lengths]


def test_packed_rows_give_the_logits_of_each_document_served_alone():
    torch.manual_seed(0)
    model = SpeechLM(LAYOUT, SHAPE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    parts = documents(np.random.default_rng(0), [7, 12, 5])
    ids = torch.from_numpy(np.concatenate(parts))[None]
    position = torch.cat([torch.arange(len(p)) for p in parts])[None]
    document = torch.repeat_interleave(torch.arange(3), torch.tensor([len(p) for p in parts]))[None]
    other = served(model)
    with torch.no_grad():
        packed, _ = model(ids, position, document)
        alone = [other(other.embed(torch.from_numpy(p)[None])) for p in parts]
    torch.testing.assert_close(packed[0], torch.cat([logits[0] for logits in alone]), rtol=1e-4, atol=1e-4)


def test_a_token_sees_only_what_precedes_it_in_its_document():
    mask = visible(torch.tensor([[0, 0, 1, 1]]))[0, 0]
    assert (mask == 0).tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


def test_the_guide_is_met_when_attention_peaks_at_the_text_spoken():
    guide = torch.tensor([[-100, 0, 1, 1]])
    attention = torch.full((1, 4, 4), -10.0)
    attention[0, [1, 2, 3], [0, 1, 1]] = 10.0
    met, share = guide_loss([attention], guide)
    missed, none = guide_loss([attention.flip(-1)], guide)
    assert met < 1e-3 < 1 < missed
    assert share == 1
    assert none < 1
