"""Several language models in one model directory: `style_config.json`, as ModelTC/LightTTS has it.

    {"lora_info": [{"style_name": "calm", "llm_path": "llm_calm.pt"}, {"style_name": "lively", "llm_path": "llm.pt"}]}

The first style is the default. Every style shares the directory's other files.
"""

from __future__ import annotations

import json
from pathlib import Path

from lighttts.errors import ModelError

STYLES_NAME = "style_config.json"
DEFAULT_WEIGHTS = "llm.pt"
MAX_STYLES = 64
MAX_STYLE_NAME = 32
MAX_BYTES = 1 << 20
_WANTED = 'it must be {"lora_info": [{"style_name": ..., "llm_path": ...}, ...]}'


def read_styles(root: Path) -> dict[str, str]:
    """The weights' path within `root` by style, the default first; `{"": "llm.pt"}` if there is no style_config.json.

    Raises `ModelError`.
    """
    path = root / STYLES_NAME
    if not path.is_file():
        return {"": DEFAULT_WEIGHTS}
    styles: dict[str, str] = {}
    for entry in _entries(path):
        name, file = _entry(path, entry)
        if name in styles:
            raise ModelError(f"{path} has the style {name!r} twice: give each a name of its own.")
        if not (root / file).resolve().is_relative_to(root.resolve()):
            raise ModelError(f"{path}: {file} lies outside the model directory: move it there.")
        styles[name] = file
    return styles


def _entries(path: Path) -> list[object]:
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        config = json.loads(content)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {_WANTED}.") from error
    entries = config.get("lora_info") if isinstance(config, dict) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_STYLES:
        raise ModelError(f"{path} names no styles: {_WANTED}, with 1 to {MAX_STYLES} of them.")
    return entries


def _entry(path: Path, entry: object) -> tuple[str, str]:
    name, file = (entry.get("style_name"), entry.get("llm_path")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(file, str) or not file:
        raise ModelError(f"{path} has a style without its name or path: {_WANTED}.")
    if not 1 <= len(name) <= MAX_STYLE_NAME or not name.isprintable() or ":" in name:
        raise ModelError(f"{path}: a style's name has 1 to {MAX_STYLE_NAME} characters and no colon, not {name!r:.80}.")
    return name, file
