"""Files of tensors (safetensors) that hold a checksum of what is in them, so that no damage is read as numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy.ctypeslib  # noqa: F401 (or safetensors imports it while the first file is written, where Ctrl-C is lost)
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crane.files import write_atomically

_CHECKSUM = "sha256"


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write ``tensors`` to ``path``: the whole file or none.

    Raises:
        OSError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_CHECKSUM: _checksum(plain)}  # one entry: safetensors writes several in an order of chance
    try:
        write_atomically(path, lambda temporary: save_file(plain, temporary, metadata))
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"{path} cannot be written: {error}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(_CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if _checksum(tensors) != expected:
        raise ValueError(f"{path} is damaged: its tensors are not those that its checksum was made of")
    return tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
