"""Built engines on disk: one file each, named by all that it depends on.

A file is written beside its place and renamed, so a reader sees a whole one or none; it begins with a digest of the
rest, so damage is found before the library reads it. A plan is code: the folder must be writable by its owner only.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from lighttts import logs
from lighttts.errors import ConfigError
from lighttts.tensorrt.builder import Profile

_DIGEST = hashlib.sha256().digest_size
_log = logs.get_logger()


@dataclass(frozen=True)
class EngineKey:
    """What an engine is built from and for. `model`: digest of weights and settings; `graph`: of what exports them."""

    model: str
    graph: str
    dtype: str
    profile: Profile
    library: str
    version: str
    gpu: str
    capability: tuple[int, int]

    @property
    def file(self) -> str:
        """Name of the engine's file: equal keys, and only those, have one."""
        facts = repr(sorted(asdict(self).items()))
        return f"estimator-{self.model[:12]}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}.plan"


def default_folder() -> Path:
    """Where engines are kept: below systemd's CACHE_DIRECTORY, XDG_CACHE_HOME or ~/.cache."""
    service = os.environ.get("CACHE_DIRECTORY")
    if service:
        return Path(service.split(":")[0]) / "tensorrt"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lighttts" / "tensorrt"


class EngineCache:
    """The engines in `folder`, which is made when the first is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: EngineKey) -> Path:
        return self.folder / key.file

    def load(self, key: EngineKey) -> bytes | None:
        """The engine of `key`; None if there is none, or a damaged one."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"the TensorRT engine {path} cannot be read: {error.strerror}") from error
        digest, plan = content[:_DIGEST], content[_DIGEST:]
        if not plan or hashlib.sha256(plan).digest() != digest:
            _log.warning("a damaged TensorRT engine is built anew", path=str(path))
            return None
        return plan

    def save(self, key: EngineKey, plan: bytes) -> Path:
        """Keep an engine; who loads it meanwhile sees the one before or this. Raises `ConfigError`."""
        path = self.path(key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(plan).digest())
                    file.write(plan)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise ConfigError(
                f"a TensorRT engine cannot be kept in {self.folder} ({error.strerror}): set decode.engine_cache to a "
                "folder that this user may write to"
            ) from error
        return path
