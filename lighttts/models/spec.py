"""A model's yaml read as data.

CosyVoice publishes its hyper-parameters as HyperPyYAML: `!new:`, `!name:` and `!apply:` name Python objects to build,
`!ref <key>` refers to a top-level key and may carry arithmetic (`!ref <chunk_size> * <token_mel_ratio>`). Nothing is
built or evaluated here: the yaml is parsed to nodes and turned into plain values. A tagged mapping keeps the name of
its class under `CLASS`; a tagged list or value becomes such a mapping with the content under `ARGUMENTS`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

import yaml

from lighttts.errors import ModelError

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"

CLASS = "!class"
"""Key of a mapping under which the dotted name after `!new:`, `!name:` or `!apply:` is kept."""
ARGUMENTS = "!args"
"""Key under which the content of a tagged list or value is kept."""

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 32
MAX_NUMBER = 1e15

_TAG = re.compile(r"!(?:new|name|apply|module):(.+)")
_REFERENCE = re.compile(r"<([^<>]+)>")
_EXPONENT_WITHOUT_POINT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_TOKEN = re.compile(r"\s*(?:<([^<>]+)>|([0-9]{1,15}(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)|(//|[-+*/()]))")
_SUMS: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: dict[str, Callable[[float, float], float]] = {
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def parse(text: str, name: str) -> dict[str, Plain]:
    """The plain data of yaml `text`; `name` is the file's name for messages. Raises `ModelError`."""
    if len(text.encode()) > MAX_BYTES:
        raise ModelError(f"{name} is larger than {MAX_BYTES} bytes, which no model's yaml is; replace it.")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where is not None else ""
        raise ModelError(f"{name} is not valid yaml{line}; restore the published file.") from error
    except RecursionError as error:
        raise ModelError(f"{name} is nested too deeply; restore the published file.") from error
    if not isinstance(root, yaml.MappingNode):
        raise ModelError(f"{name} is not a yaml mapping; restore the published file.")
    return _Reader(name).read(root)


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.top: dict[str, yaml.Node] = {}
        self.done: dict[str, Plain] = {}
        self.underway: list[str] = []
        self.values = 0
        self.scalars = yaml.constructor.SafeConstructor()

    def read(self, root: yaml.MappingNode) -> dict[str, Plain]:
        self.top = dict(self.items(root))
        return {key: self.resolve(key) for key in self.top}

    def error(self, node: yaml.Node, what: str) -> ModelError:
        return ModelError(f"{self.name}, line {node.start_mark.line + 1}: {what}; restore the published file.")

    def items(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, "a key is not a word")
            if key.value in seen:
                raise self.error(key, f"the key {key.value} occurs twice")
            seen.add(key.value)
            yield key.value, value

    def resolve(self, key: str) -> Plain:
        """Value of a top-level key, each read once however often it is referred to."""
        if key not in self.done:
            if len(self.underway) >= MAX_DEPTH:
                raise self.error(self.top[key], "a chain of !ref is too long")
            self.underway.append(key)
            self.done[key] = self.plain(self.top[key], 1)
            self.underway.pop()
        return self.done[key]

    def plain(self, node: yaml.Node, depth: int) -> Plain:
        # Aliases make a node appear many times: the count is of visits, which bounds what they can expand to.
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise self.error(node, "too many or too deeply nested values")
        if node.tag == "!ref":
            return self.reference(node)
        content = self.content(node, depth)
        tag = _TAG.fullmatch(node.tag)
        if tag is None:
            return content
        if isinstance(content, dict):
            return {CLASS: tag[1], **content}
        return {CLASS: tag[1]} if content in (None, "") else {CLASS: tag[1], ARGUMENTS: content}

    def content(self, node: yaml.Node, depth: int) -> Plain:
        if isinstance(node, yaml.MappingNode):
            return {key: self.plain(value, depth + 1) for key, value in self.items(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(value, depth + 1) for value in node.value]
        return self.scalar(node)

    def scalar(self, node: yaml.Node) -> Plain:
        text = str(node.value)
        plain_style = getattr(node, "style", None) is None
        if plain_style and _EXPONENT_WITHOUT_POINT.fullmatch(text):
            return float(text)  # 1e-5 is a number in yaml 1.2, which the files are written for, but not in PyYAML's 1.1
        if node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"):
            return None if node.tag == "tag:yaml.org,2002:null" else text
        try:
            value = self.scalars.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise self.error(node, f"{text} is not a number") from error
        if isinstance(value, bool | int | float):
            return value
        raise self.error(node, f"{text} is not a number")

    def reference(self, node: yaml.Node) -> Plain:
        text = str(node.value).strip()
        whole = _REFERENCE.fullmatch(text)
        return self.look_up(whole[1], node) if whole else _Arithmetic(self, node, text).value()

    def look_up(self, key: str, node: yaml.Node) -> Plain:
        if key not in self.top:
            raise self.error(node, f"!ref names <{key}>, which is not a key of the file")
        if key in self.underway:
            raise self.error(node, f"!ref <{key}> refers to itself")
        return self.resolve(key)


class _Arithmetic:
    """The value of `sum = product ([+-] product)*`, `product = factor ([*/] factor)*` over numbers and references."""

    def __init__(self, reader: _Reader, node: yaml.Node, text: str) -> None:
        self.reader = reader
        self.node = node
        self.text = text
        self.at = 0

    def value(self) -> Plain:
        result = self.sum(0)
        if self.text[self.at :].strip() or not abs(result) < MAX_NUMBER:
            raise self.invalid()
        return result

    def invalid(self) -> ModelError:
        return self.reader.error(self.node, f"!ref {self.text} is neither a reference nor arithmetic on references")

    def peek(self) -> re.Match[str] | None:
        return _TOKEN.match(self.text, self.at)

    def operator(self, table: dict[str, Callable[[float, float], float]]) -> Callable[[float, float], float] | None:
        token = self.peek()
        if token is None or token[3] not in table:
            return None
        self.at = token.end()
        return table[token[3]]

    def sum(self, depth: int) -> float:
        result = self.product(depth)
        while combine := self.operator(_SUMS):
            result = combine(result, self.product(depth))
        return result

    def product(self, depth: int) -> float:
        result = self.factor(depth)
        while combine := self.operator(_PRODUCTS):
            try:
                result = combine(result, self.factor(depth))
            except (ZeroDivisionError, OverflowError) as error:
                raise self.invalid() from error
        return result

    def factor(self, depth: int) -> float:
        token = self.peek()
        if token is None or depth > MAX_DEPTH:
            raise self.invalid()
        self.at = token.end()
        if token[1] is not None:
            value = self.reader.look_up(token[1], self.node)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.invalid()
            return value
        if token[2] is not None:
            return int(token[2]) if token[2].isdigit() else float(token[2])
        if token[3] == "-":
            return -self.factor(depth + 1)
        if token[3] != "(":
            raise self.invalid()
        result = self.sum(depth + 1)
        closing = self.peek()
        if closing is None or closing[3] != ")":
            raise self.invalid()
        self.at = closing.end()
        return result
