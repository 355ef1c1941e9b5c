"""A model directory is read as data, and whatever is wrong with it is said in one sentence that names the file."""

from __future__ import annotations

import json
import operator
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory, check
from lighttts.models.section import Section
from lighttts.models.spec import ARGUMENTS, CLASS, MAX_BYTES, MAX_NUMBER, parse
from lighttts.models.weights import load_into, load_weights

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden"
OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def combined(parts: tuple[tuple[str, float | None], str, tuple[str, float | None]]) -> tuple[str, float | None]:
    """A bracketed sum or product of two expressions, with its value: None if a division by 0 leaves it without one."""
    (left, a), name, (right, b) = parts
    value = None if a is None or b is None or (name in ("/", "//") and b == 0) else OPERATORS[name](a, b)
    return f"({left} {name} {right})", value


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "cosyvoice2-tiny", tmp_path / "model"))


def problem(act: Callable[[], object]) -> str:
    """The sentence of the `ModelError` that `act` raises."""
    with pytest.raises(ModelError) as caught:
        act()
    text = caught.value.text
    assert text.endswith(".")
    assert "\n" not in text
    return text


class TestReading:
    @pytest.mark.parametrize("version", [2, 3])
    def test_version_comes_from_the_name_of_the_yaml(self, version: int) -> None:
        directory = ModelDirectory.open(GOLDEN / f"cosyvoice{version}-tiny")
        assert directory.version == version
        assert directory.sample_rate == 24000
        assert directory.path(directory.speech_tokenizer_name).is_file()

    def test_dimensions_are_read_through_nested_sections(self) -> None:
        flow = ModelDirectory.open(GOLDEN / "cosyvoice2-tiny").settings.section("flow")
        assert flow.class_name == "CausalMaskedDiffWithXvec"
        assert flow.integer("token_mel_ratio") == 2
        assert flow.section("decoder").section("estimator").integer("static_chunk_size") == 50
        assert flow.section("decoder").section("estimator").integers("channels") == [32]
        assert flow.section("decoder").section("cfm_params").section("content").number("sigma_min") == 1e-6

    def test_qwen_configuration_is_read(self) -> None:
        assert ModelDirectory.open(GOLDEN / "cosyvoice2-tiny").qwen_config().integer("hidden_size") == 64

    def test_generator_prefix_of_weights_is_dropped(self) -> None:
        weights = ModelDirectory.open(GOLDEN / "cosyvoice2-tiny").load_weights("hift.pt")
        assert "conv_pre.bias" in weights
        assert not any(name.startswith("generator.") for name in weights)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_precision_weights_become_float32_unless_kept(self, model: Path, half: torch.dtype) -> None:
        torch.save({"a": torch.full((3,), 1.5, dtype=half), "b": torch.arange(3), "epoch": 7}, model / "flow.pt")
        directory = ModelDirectory.open(model)
        weights = directory.load_weights("flow.pt")
        assert weights["a"].dtype == torch.float32
        assert weights["a"].tolist() == [1.5, 1.5, 1.5]
        assert weights["b"].dtype == torch.int64
        assert set(weights) == {"a", "b"}
        assert directory.load_weights("flow.pt", keep_half=True)["a"].dtype == half

    def test_files_of_the_format_before_zip_are_read(self, model: Path) -> None:
        torch.save({"a": torch.ones(2)}, model / "flow.pt", _use_new_zipfile_serialization=False)
        assert ModelDirectory.open(model).load_weights("flow.pt")["a"].tolist() == [1, 1]

    def test_hashes_follow_content_and_not_place(self, model: Path) -> None:
        here, there = ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), ModelDirectory.open(model)
        assert there.model_hash == here.model_hash
        weights = dict(there.load_weights("flow.pt"))
        name = next(iter(weights))
        weights[name] = weights[name] + 1
        torch.save(weights, model / "flow.pt")
        assert ModelDirectory.open(model).config_hash == here.config_hash
        assert ModelDirectory.open(model).model_hash != here.model_hash
        (model / "cosyvoice2.yaml").write_text((model / "cosyvoice2.yaml").read_text() + "\n# changed\n")
        assert ModelDirectory.open(model).config_hash != here.config_hash


class TestYamlAsData:
    def test_tags_are_kept_as_names_and_build_nothing(self) -> None:
        spec = parse("a: !new:os.system\n  command: x\nb: !apply:os.system [x]\nc: !name:os.getcwd\n", "t.yaml")
        assert spec == {
            "a": {CLASS: "os.system", "command": "x"},
            "b": {CLASS: "os.system", ARGUMENTS: ["x"]},
            "c": {CLASS: "os.getcwd"},
        }

    def test_python_tags_build_nothing(self) -> None:
        assert parse("a: !!python/object/apply:os.getcwd []\n", "t.yaml") == {"a": []}

    def test_references_and_arithmetic_are_resolved(self) -> None:
        spec = parse(
            "n: 25\nm: 2\nwhole: !ref <n>\nproduct: !ref <n> * <m>\nmixed: !ref (<n> + 3) // 4 - -<m>\n"
            "half: !ref <n> / <m>\nlater: !ref <last>\nlast: {x: !ref <n>}\n",
            "t.yaml",
        )
        assert (spec["whole"], spec["product"], spec["mixed"], spec["half"]) == (25, 50, 9, 12.5)
        assert spec["later"] == {"x": 25}

    @given(
        st.recursive(
            st.one_of(st.integers(0, 99).map(lambda n: (str(n), n)), st.just(("<n>", 7))),
            lambda part: st.tuples(part, st.sampled_from(list(OPERATORS)), part).map(combined),
            max_leaves=12,
        )
    )
    @settings(deadline=None)
    def test_arithmetic_agrees_with_python(self, expression: tuple[str, float | None]) -> None:
        text, value = f"n: 7\nx: !ref {expression[0]} + 0\n", expression[1]
        if value is None or abs(value) >= MAX_NUMBER:
            assert "arithmetic" in problem(lambda: parse(text, "t.yaml"))
        else:
            assert parse(text, "t.yaml")["x"] == value

    def test_numbers_with_an_exponent_and_no_point_are_numbers(self) -> None:
        assert parse("a: 1e-06\nb: '1e-06'\nc: -2E3\n", "t.yaml") == {"a": 1e-06, "b": "1e-06", "c": -2000.0}

    def test_scalars_keep_their_kind(self) -> None:
        spec = parse("a: null\nb: true\nc: 'true'\nd: 1.5\ne: ''\nf: 2020-01-01\n", "t.yaml")
        assert spec == {"a": None, "b": True, "c": "true", "d": 1.5, "e": "", "f": "2020-01-01"}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a: [1\n", "not valid yaml in line 2"),
            ("- a\n", "not a yaml mapping"),
            ("", "not a yaml mapping"),
            ("a: 1\na: 2\n", "line 2: the key a occurs twice"),
            ("[a]: 1\n", "key is not a word"),
            ("a: !ref <b>\n", "line 1: !ref names <b>, which is not a key"),
            ("a: !ref <a>\n", "!ref <a> refers to itself"),
            ("a: !ref <b>\nb: [!ref <a>]\n", "refers to itself"),
            ("a: 1\nb: !ref <a> ** 9\n", "neither a reference nor arithmetic"),
            ("a: x\nb: !ref <a> * 2\n", "neither a reference nor arithmetic"),
            ("a: 1\nb: !ref <a> / 0\n", "neither a reference nor arithmetic"),
            ("a: 1\nb: !ref __import__('os')\n", "neither a reference nor arithmetic"),
            ("a: 1\nb: !ref (<a>\n", "neither a reference nor arithmetic"),
            ("a: 1\nb: !ref " + "-" * 100 + "<a>\n", "neither a reference nor arithmetic"),
            ("a: !!int x\n", "x is not a number"),
            ("a: &x [*x]\n", "too deeply nested"),
            ("a: " + "[" * 40 + "]" * 40 + "\n", "too deeply nested"),
            ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
            ("\n".join(["a0: 1"] + [f"a{i}: !ref <a{i - 1}>" for i in range(99, 0, -1)]), "chain of !ref is too long"),
            ("#" * MAX_BYTES + "\n", "larger than"),
        ],
    )
    def test_what_is_no_spec_is_refused(self, text: str, said: str) -> None:
        sentence = problem(lambda: parse(text, "t.yaml"))
        assert sentence.startswith("t.yaml")
        assert said in sentence

    def test_aliases_cannot_expand_without_bound(self) -> None:
        lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
        assert "too many" in problem(lambda: parse("\n".join(lines), "t.yaml"))

    @given(st.text(max_size=60))
    @settings(deadline=None, max_examples=200)
    def test_any_text_is_read_or_refused_in_words(self, text: str) -> None:
        said = "t.yaml"
        try:
            parse(text, "t.yaml")
        except ModelError as error:
            said = error.text
        assert said.startswith("t.yaml")


class TestSection:
    section = Section({"n": 3, "zero": 0, "t": "x", "f": True, "l": [1, 2], "m": {"k": 0.5}}, "t.yaml", "flow")

    def test_values_are_given_by_kind(self) -> None:
        assert self.section.integer("n") == 3
        assert self.section.integer("zero", least=0) == 0
        assert self.section.text("t") == "x"
        assert self.section.flag("f") is True
        assert self.section.integers("l") == [1, 2]
        assert self.section.section("m").number("k") == 0.5
        assert "n" in self.section
        assert "k" not in self.section

    @pytest.mark.parametrize(
        ("read", "said"),
        [
            (lambda s: s.integer("none"), "lacks flow.none (a whole number)"),
            (lambda s: s.integer("f"), "flow.f is not a whole number"),
            (lambda s: s.integer("zero"), "flow.zero is not a whole number of at least 1"),
            (lambda s: s.number("t"), "flow.t is not a number"),
            (lambda s: s.text("n"), "flow.n is not a text"),
            (lambda s: s.flag("n"), "flow.n is not true or false"),
            (lambda s: s.integers("t"), "flow.t is not a list of whole numbers"),
            (lambda s: s.integers("l", least=2), "flow.l is not a list of whole numbers of at least 2"),
            (lambda s: s.section("n"), "flow.n is not a mapping"),
            (lambda s: s.section("m").flag("x"), "lacks flow.m.x (true or false)"),
        ],
    )
    def test_a_missing_or_wrong_value_is_named(self, read: Callable[[Section], object], said: str) -> None:
        sentence = problem(lambda: read(self.section))
        assert sentence.startswith("t.yaml")
        assert said in sentence


class TestDamage:
    def test_no_directory(self, tmp_path: Path) -> None:
        assert f"{tmp_path / 'none'} is not a directory" in problem(lambda: ModelDirectory.open(tmp_path / "none"))

    def test_no_yaml(self, tmp_path: Path) -> None:
        assert "neither cosyvoice2.yaml nor cosyvoice3.yaml" in problem(lambda: ModelDirectory.open(tmp_path))

    def test_two_yamls(self, model: Path) -> None:
        shutil.copy(model / "cosyvoice2.yaml", model / "cosyvoice3.yaml")
        assert "cosyvoice2.yaml and cosyvoice3.yaml" in problem(lambda: ModelDirectory.open(model))

    @pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe", "not UTF-8"), (b"#" * (MAX_BYTES + 1), "larger than")])
    def test_yaml_that_is_no_text(self, model: Path, content: bytes, said: str) -> None:
        (model / "cosyvoice2.yaml").write_bytes(content)
        assert said in problem(lambda: ModelDirectory.open(model))

    @pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
    def test_wrong_qwen_configuration(self, model: Path, content: str) -> None:
        (model / "CosyVoice-BlankEN" / "config.json").write_text(content)
        assert "config.json" in problem(ModelDirectory.open(model).qwen_config)

    @pytest.mark.parametrize("name", ["llm.pt", "flow.pt", "hift.pt"])
    def test_missing_weights(self, model: Path, name: str) -> None:
        (model / name).unlink()
        assert f"{model / name} is missing" in problem(lambda: ModelDirectory.open(model).load_weights(name))

    @pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.99])
    def test_truncated_weights(self, model: Path, keep: float) -> None:
        content = (model / "llm.pt").read_bytes()
        (model / "llm.pt").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
        sentence = problem(lambda: ModelDirectory.open(model).load_weights("llm.pt"))
        assert f"{model / 'llm.pt'} is truncated, corrupt or no PyTorch file" in sentence

    @given(content=st.binary(max_size=200))
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_bytes_that_are_no_weights(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "llm.pt").write_bytes(content)
        assert f"{tmp_path / 'llm.pt'} is truncated" in problem(lambda: load_weights(tmp_path / "llm.pt"))

    @pytest.mark.parametrize(
        ("saved", "said"),
        [
            ([torch.ones(1)], "does not hold a mapping of names"),
            ({1: torch.ones(1)}, "does not hold a mapping of names"),
            ({"state_dict": {"a": torch.ones(1)}}, "state_dict is not a tensor"),
            ({"epoch": 3}, "holds no tensors"),
            ({"a": Path("x")}, "truncated, corrupt or no PyTorch file"),
        ],
    )
    def test_saved_objects_that_are_no_weights(self, model: Path, saved: object, said: str) -> None:
        torch.save(saved, model / "llm.pt")
        assert said in problem(lambda: ModelDirectory.open(model).load_weights("llm.pt"))

    def test_weights_of_another_model(self) -> None:
        module = torch.nn.Linear(2, 3)
        good = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
        load_into(module, good, "x.pt")
        assert module.weight.tolist() == good["weight"].tolist()
        assert "x.pt lacks the tensor bias;" in problem(lambda: load_into(module, {"weight": good["weight"]}, "x.pt"))
        more = good | {"y": torch.ones(1), "z": torch.ones(1)}
        assert "x.pt holds the unknown tensor y and 1 more;" in problem(lambda: load_into(module, more, "x.pt"))
        wrong = good | {"bias": torch.ones(4)}
        assert "bias has shape (4,) where the yaml asks for (3,)" in problem(lambda: load_into(module, wrong, "x.pt"))


class TestVoices:
    prompt = {  # noqa: RUF012
        "prompt_text": torch.tensor([[1, 2]], dtype=torch.int32),
        "prompt_text_len": torch.tensor([2], dtype=torch.int32),
        "llm_prompt_speech_token": torch.tensor([[3, 4, 5]], dtype=torch.int32),
        "flow_prompt_speech_token": torch.tensor([[3, 4, 5]], dtype=torch.int32),
        "prompt_speech_feat": torch.ones(1, 6, 80),
        "llm_embedding": torch.ones(1, 192),
        "flow_embedding": torch.full((1, 192), 2.0),
    }

    def read(self, model: Path, voices: object):
        torch.save(voices, model / "spk2info.pt")
        return ModelDirectory.open(model).voices()

    def test_a_voice_of_an_embedding_alone_has_an_empty_prompt(self) -> None:
        voices = ModelDirectory.open(GOLDEN / "cosyvoice2-tiny").voices()
        assert list(voices) == ["tiny-voice"]
        voice = voices["tiny-voice"]
        assert voice.embedding.shape == (192,)
        assert voice.embedding.dtype == np.float32
        assert voice.prompt_text.shape == voice.llm_prompt_speech_token.shape == (0,)
        assert voice.prompt_speech_feat.shape == (0, 80)

    def test_a_voice_registered_from_a_prompt_carries_it(self, model: Path) -> None:
        voice = self.read(model, {"ann": self.prompt})["ann"]
        assert voice.name == "ann"
        assert voice.embedding.tolist() == [2.0] * 192
        assert voice.prompt_text.tolist() == [1, 2]
        assert voice.llm_prompt_speech_token.tolist() == voice.flow_prompt_speech_token.tolist() == [3, 4, 5]
        assert voice.prompt_text.dtype == voice.flow_prompt_speech_token.dtype == np.int32
        assert voice.prompt_speech_feat.shape == (6, 80)
        assert voice.prompt_speech_feat.dtype == np.float32

    def test_a_model_may_have_no_voices(self, model: Path) -> None:
        (model / "spk2info.pt").unlink()
        assert ModelDirectory.open(model).voices() == {}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"flow_embedding": torch.ones(1, 100)}, "flow_embedding has 100 values where the yaml asks for 192"),
            ({"flow_embedding": torch.full((1, 192), float("nan"))}, "flow_embedding holds values that are not finite"),
            ({"flow_embedding": [1.0]}, "flow_embedding is missing or not a tensor"),
            ({"flow_prompt_speech_token": torch.tensor([[3, 4, 100]])}, "a token outside 0..99"),
            ({"llm_prompt_speech_token": torch.tensor([[-1]])}, "llm_prompt_speech_token holds a token outside"),
            ({"llm_prompt_speech_token": torch.ones(1, 3)}, "llm_prompt_speech_token has shape (3,) and type"),
            ({"prompt_speech_feat": torch.ones(1, 7, 80)}, "prompt_speech_feat has shape (7, 80)"),
            ({"prompt_speech_feat": torch.ones(6)}, "prompt_speech_feat has shape (6,)"),
        ],
    )
    def test_a_voice_that_does_not_fit_the_model_is_named(self, model: Path, change: dict, said: str) -> None:
        sentence = problem(lambda: self.read(model, {"ann": self.prompt | change}))
        assert f"{model / 'spk2info.pt'}: voice ann: " in sentence
        assert said in sentence

    def test_an_entry_that_is_no_mapping(self, model: Path) -> None:
        assert "voice ann: embedding is missing" in problem(lambda: self.read(model, {"ann": torch.ones(3)}))


class TestCheck:
    @pytest.mark.parametrize("version", [2, 3])
    def test_a_whole_directory_has_no_problems(self, version: int) -> None:
        assert check(GOLDEN / f"cosyvoice{version}-tiny") == []

    def test_all_problems_are_listed_at_once(self, model: Path) -> None:
        (model / "campplus.onnx").unlink()
        (model / "CosyVoice-BlankEN" / "merges.txt").unlink()
        (model / "flow.pt").write_bytes(b"no weights")
        (model / "CosyVoice-BlankEN" / "config.json").write_text("{")
        torch.save({"ann": {}}, model / "spk2info.pt")
        problems = check(model)
        for name in ("campplus.onnx", "merges.txt", "flow.pt", "config.json", "spk2info.pt"):
            assert sum(name in sentence for sentence in problems) == 1
        assert len(problems) == 5

    def test_a_directory_that_cannot_be_opened_is_one_problem(self, tmp_path: Path) -> None:
        assert len(check(tmp_path)) == 1

    def test_a_changed_byte_is_found_by_checksum(self, model: Path) -> None:
        content = bytearray((model / "llm.pt").read_bytes())
        weight = ModelDirectory.open(model).load_weights("llm.pt")["llm.model.model.embed_tokens.weight"]
        at = bytes(content).index(weight.numpy().tobytes()[:64])
        content[at + random.Random(1).randrange(64)] ^= 1
        (model / "llm.pt").write_bytes(content)
        assert check(model) == [
            f"{model / 'llm.pt'} is damaged: its content does not match its checksums; restore the published file."
        ]

    def test_weights_that_are_not_finite_are_found(self, model: Path) -> None:
        torch.save({"a": torch.tensor([1.0, float("inf")])}, model / "hift.pt")
        assert any("hift.pt: a holds values that are not finite" in sentence for sentence in check(model))

    def test_a_yaml_without_a_needed_key(self, model: Path) -> None:
        text = (model / "cosyvoice2.yaml").read_text().replace("sample_rate: 24000", "sample_rate: fast")
        (model / "cosyvoice2.yaml").write_text(text)
        assert any("sample_rate is not a whole number" in sentence for sentence in check(model))

    def test_a_configuration_of_another_kind(self, model: Path) -> None:
        (model / "CosyVoice-BlankEN" / "config.json").write_text(json.dumps([1]))
        assert any("config.json" in sentence for sentence in check(model))
