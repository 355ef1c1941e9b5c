"""The language models, loaded the way a published directory is, against the reference's outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory
from lighttts.models.llm import SpeechLM, build_llm, load_llm
from lighttts.models.qwen2 import CausalAttend, Qwen2, Qwen2Config, Rotation, initialise, rotary_table

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden"
CPU = torch.device("cpu")
PINNED = load_file(Path(__file__).parent / "data" / "cosyvoice2_tiny_llm.safetensors")
"""Steps of the reference run with the transformers version that upstream requires (4.51.3)."""


@pytest.fixture(scope="module", params=["cosyvoice2-tiny", "cosyvoice3-tiny"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@pytest.fixture(scope="module")
def golden(tiny: Path) -> dict[str, Tensor]:
    return load_file(tiny / "golden.safetensors")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> SpeechLM:
    return load_llm(ModelDirectory.open(tiny), CPU)


cosyvoice2_only = pytest.mark.parametrize("tiny", ["cosyvoice2-tiny"], indirect=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "cosyvoice2-tiny", tmp_path / "model"))


def prompt_ids(llm: SpeechLM, golden: dict[str, Tensor]) -> Tensor:
    text = torch.cat([golden["llm.prompt_text"], golden["llm.text"]], 1)[0]
    return torch.from_numpy(llm.vocabulary.sequence(text.numpy(), golden["llm.prompt_speech"][0].numpy()))[None]


def teacher_forced(llm: SpeechLM, golden: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Log-probabilities of the step that makes each of `tokens`."""
    ids = torch.cat([prompt_ids(llm, golden)[0], tokens[:-1] + llm.vocabulary.speech_offset])[None]
    with torch.no_grad():
        return llm(llm.embed(ids)).log_softmax(-1)[0, -len(tokens) :]


def assert_close(ours: Tensor, reference: Tensor) -> None:
    assert (ours - reference).abs().max() < 1e-4 * reference.std()


class TestReference:
    def test_input_is_start_text_task_and_prompt_speech(self, llm, golden) -> None:
        assert_close(llm.embed(prompt_ids(llm, golden)), golden["llm.input_embeds"])

    def test_first_step(self, llm, golden) -> None:
        assert_close(teacher_forced(llm, golden, golden["llm.greedy_tokens"][:1]), golden["llm.logp"][:1])

    @cosyvoice2_only
    def test_every_step(self, llm, golden) -> None:
        assert_close(teacher_forced(llm, golden, PINNED["greedy_tokens"]), PINNED["logp"])

    @cosyvoice2_only
    def test_greedy_tokens(self, llm, golden) -> None:
        tokens = torch.zeros(0, dtype=torch.int64)
        for _ in PINNED["greedy_tokens"]:
            last = teacher_forced(llm, golden, torch.cat([tokens, torch.zeros(1, dtype=torch.int64)]))[-1]
            tokens = torch.cat([tokens, last[: llm.vocabulary.speech].argmax()[None]])
        assert tokens.tolist() == PINNED["greedy_tokens"].tolist()

    def test_every_step_of_the_golden_file_under_the_mask_it_was_made_with(self, llm, golden) -> None:
        """transformers 5 pads the one-entry mask that upstream gives each step with zeros: only `sos` is attended to.

        The golden files were made with it; their first step, which is prefilled, is not affected.
        """
        ids = prompt_ids(llm, golden)[0]
        tokens = torch.zeros(0, dtype=torch.int64)
        for logp in golden["llm.logp"]:
            sequence = torch.cat([ids, tokens + llm.vocabulary.speech_offset])
            rotation = Rotation(*llm.rotary_table(len(sequence)))
            attend = CausalAttend()
            attend.allowed = torch.ones(len(sequence), len(sequence), dtype=torch.bool).tril()
            attend.allowed[len(ids) :, 1:] = False
            with torch.no_grad():
                ours = llm.llm_decoder(llm.body(llm.embed(sequence[None]), rotation, attend)[0, -1]).log_softmax(-1)
            assert (ours - logp).abs().max() < 1e-4 * golden["llm.logp"].std()
            tokens = torch.cat([tokens, ours[: llm.vocabulary.speech].argmax()[None]])
        assert tokens.tolist() == golden["llm.greedy_tokens"].tolist()

    def test_body_is_the_qwen2_of_transformers_at_other_dimensions(self) -> None:
        from transformers import Qwen2Config as TheirConfig
        from transformers import Qwen2Model

        config = Qwen2Config(
            vocabulary=30, width=48, inner=40, layers=3, heads=6, kv_heads=3, head_width=8, norm_epsilon=1e-5,
            rope_theta=5000.0, init_std=0.4,
        )  # fmt: skip
        torch.manual_seed(1)
        ours = Qwen2(config)
        initialise(ours, config.init_std)
        for name, tensor in ours.state_dict().items():
            torch.nn.init.normal_(tensor, 1.0 if "norm" in name else 0.0, 0.3)
        theirs = Qwen2Model(
            TheirConfig(
                vocab_size=30, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
                num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=5000.0, attn_implementation="eager",
                rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
            )
        )  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
        embedded = torch.randn(2, 17, 48)
        with torch.no_grad():
            mine = ours(embedded, Rotation(*rotary_table(config, 17, CPU, torch.float32)), CausalAttend())
            reference = theirs(inputs_embeds=embedded).last_hidden_state
        assert_close(mine, reference)


class TestVocabulary:
    def test_ids_are_those_of_the_class_that_the_yaml_names(self, llm, tiny) -> None:
        ids = llm.vocabulary
        found = (ids.sos, ids.task_id, ids.end_of_speech, ids.fill, ids.stops)
        assert (
            found
            == {"cosyvoice2-tiny": (600, 601, 100, 102, 3), "cosyvoice3-tiny": (700, 702, 101, 103, 200)}[tiny.name]
        )

    def test_each_id_after_those_of_text_is_a_row_of_the_input_table(self, llm) -> None:
        ids = torch.arange(llm.vocabulary.text, llm.vocabulary.speech_offset + llm.vocabulary.speech + 3)
        with torch.no_grad():
            assert torch.equal(llm.embed(ids), llm.input_table()[: len(ids)])


class TestStateDict:
    def test_names_and_tensors_are_the_published_ones(self, llm, tiny) -> None:
        published = ModelDirectory.open(tiny).load_weights("llm.pt")
        del published["llm.model.lm_head.weight"]
        ours = llm.state_dict()
        assert ours.keys() == published.keys()
        assert all(torch.equal(ours[name], published[name]) for name in published)

    @pytest.mark.parametrize("stored", [torch.float32, torch.float16])
    def test_a_trained_model_saved_as_llm_pt_is_a_published_one(self, model: Path, stored: torch.dtype) -> None:
        torch.manual_seed(5)
        trained = build_llm(ModelDirectory.open(model))
        saved = {name: tensor.to(stored) for name, tensor in trained.state_dict().items()}
        torch.save(saved, model / "llm.pt")
        loaded = load_llm(ModelDirectory.open(model), CPU).state_dict()
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in saved.items())

    def test_weights_take_the_dtype_asked_for(self) -> None:
        half = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), CPU, torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert half(half.embed(torch.tensor([[1, 2, 3]]))).dtype == torch.bfloat16


class TestTraining:
    def test_padding_changes_nothing_at_real_positions(self, llm) -> None:
        ids = torch.randint(0, llm.vocabulary.speech_offset + 100, (2, 12), generator=torch.Generator().manual_seed(1))
        mask = torch.ones(2, 12, dtype=torch.bool)
        mask[0, 7:] = False
        with torch.no_grad():
            masked, bare, alone = llm(llm.embed(ids), mask), llm(llm.embed(ids)), llm(llm.embed(ids[:1, :7]))
        torch.testing.assert_close(masked[0, :7], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(bare[0, :7], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(masked[1], bare[1], rtol=0, atol=1e-5)
        assert masked.isfinite().all()

    def test_every_parameter_is_trained(self, tiny) -> None:
        torch.manual_seed(2)
        llm = build_llm(ModelDirectory.open(tiny))
        ids = torch.from_numpy(llm.vocabulary.sequence([1, 2, 3], [4, 5, 6]))[None]
        logits = llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        logits[0, -4:].log_softmax(-1)[torch.arange(4), torch.tensor([4, 5, 6, 100])].sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in llm.parameters())

    def test_fresh_logits_are_near_even(self) -> None:
        torch.manual_seed(2)
        llm = build_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"))
        logp = llm(llm.embed(torch.arange(40)[None])).log_softmax(-1)
        assert (logp + torch.tensor(103.0).log()).abs().max() < 1


class TestRefusal:
    def refusal(self, model: Path) -> str:
        with pytest.raises(ModelError) as caught:
            load_llm(ModelDirectory.open(model), CPU)
        assert caught.value.text.endswith(".")
        return caught.value.text

    def change_config(self, model: Path, **changes: object) -> None:
        path = model / "CosyVoice-BlankEN" / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def change_yaml(self, model: Path, old: str, new: str) -> None:
        path = model / "cosyvoice2.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def test_a_class_it_does_not_know(self, model: Path) -> None:
        self.change_yaml(model, "cosyvoice.llm.llm.Qwen2LM", "cosyvoice.llm.llm.TransformerLM")
        assert "a TransformerLM; a model with Qwen2LM or CosyVoice3LM is needed" in self.refusal(model)

    def test_width_of_another_model(self, model: Path) -> None:
        self.change_yaml(model, "llm_input_size: 64", "llm_input_size: 896")
        assert "llm_input_size is 896" in self.refusal(model)

    def test_weights_of_another_size(self, model: Path) -> None:
        self.change_yaml(model, "speech_token_size: 100", "speech_token_size: 6561")
        assert "has shape (103, 64) where the yaml asks for (6564, 64)" in self.refusal(model)

    def test_weights_with_fewer_layers(self, model: Path) -> None:
        self.change_config(model, num_hidden_layers=3)
        said = self.refusal(model)
        assert "llm.pt lacks the tensor llm.model.model.layers.2.input_layernorm.weight and 11 more" in said

    def test_weights_of_another_part(self, model: Path) -> None:
        shutil.copy(model / "flow.pt", model / "llm.pt")
        assert "llm.pt lacks the tensor" in self.refusal(model)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"num_attention_heads": 5}, "do not divide"),
            ({"num_key_value_heads": 3}, "do not divide"),
            ({"hidden_act": "gelu"}, "not supported"),
            ({"use_sliding_window": True}, "not supported"),
            ({"vocab_size": None}, "lacks vocab_size"),
            ({"rope_parameters": None}, "lacks rope_theta"),
            ({"rms_norm_eps": "small"}, "rms_norm_eps is not a number"),
        ],
    )
    def test_a_configuration_that_is_no_qwen2(self, model: Path, changes: dict, said: str) -> None:
        self.change_config(model, **changes)
        text = self.refusal(model)
        assert "config.json" in text
        assert said in text

    def test_rotary_base_is_read_where_older_files_have_it(self, model: Path) -> None:
        before = load_llm(ModelDirectory.open(model), CPU).config
        self.change_config(model, rope_parameters=None, rope_theta=1000000.0)
        assert load_llm(ModelDirectory.open(model), CPU).config == before
