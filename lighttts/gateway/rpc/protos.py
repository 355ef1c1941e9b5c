"""The .proto files of this folder, compiled in memory when they are first needed: there is no generated code that could
be missing from an installation or older than its source."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from lighttts.errors import InternalError

FOLDER = Path(__file__).parent

POOL = DescriptorPool()
"""What is compiled here. It is not the process's pool: a program that runs the gateway inside it may hold its own code
generated from the same files, and a pool takes a file once."""


class Service:
    """A service of a .proto: `name` with its package, `methods` by name with the classes of what comes in and out.

    `kinds`: the classes of all messages of the file, by name.
    """

    def __init__(self, file: str, name: str) -> None:
        _compile(file)
        described = POOL.FindServiceByName(name)
        messages: Mapping[str, Any] = described.file.message_types_by_name
        self.name = name
        self.kinds = {kind: GetMessageClass(descriptor) for kind, descriptor in messages.items()}
        self.methods = {method.name: method for method in described.methods}


@functools.cache
def _compile(file: str) -> None:
    """Adds `file` to the pool, once."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "descriptors"
        if protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={target}", file]):
            raise InternalError(f"{file} cannot be compiled: standard error tells why")
        for described in FileDescriptorSet.FromString(target.read_bytes()).file:
            POOL.AddSerializedFile(described.SerializeToString())
