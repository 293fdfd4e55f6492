"""Weights of a TorchScript archive, the form of OpenAI's files, without running a line of the code in it.

``torch.jit.load`` runs the ``__setstate__`` methods of an archive, and TorchScript can write files. Here the archive is
read as what it is: a zip file with one pickle of plain data, whose few building blocks are listed below, and raw numbers.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive by their dotted names.

    Raises:
        pickle.UnpicklingError: If the pickle names anything but modules, tensors and lists.
        Exception: Whatever a damaged archive makes the zip file or the unpickler stumble over.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            msg = "there is no data.pkl in it"
            raise zipfile.BadZipFile(msg)
        content = io.BytesIO(_read_stored(archive, names[0]))
        root = _Unpickler(content, archive, names[0].removesuffix("data.pkl")).load()
    return dict(_tensors(root, ""))


class _Unpickler(pickle.Unpickler):
    """Makes empty modules, tensors and lists, and refuses everything else."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder
        # Made anew for each file, so that a pickle that changes them changes nothing of this process.
        self._module = type("Module", (), {})

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if module == "__torch__" or module.startswith("__torch__."):
            return self._module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_") and name.endswith("list"):
            return lambda values: values
        msg = f"it names {module}.{name}"
        raise pickle.UnpicklingError(msg)

    def persistent_load(self, pid: Any) -> Tensor:  # noqa: ANN401
        _, dtype, key, _, count = pid
        content = bytearray(_read_stored(self._archive, f"{self._folder}data/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _read_stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry with its checksum verified; a compressed one, which torch does not make, could be of any size."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        msg = f"{name} is compressed"
        raise zipfile.BadZipFile(msg)
    return archive.read(name)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif hasattr(value, "__dict__") and type(value) is type(module):
            yield from _tensors(value, f"{prefix}{name}.")
