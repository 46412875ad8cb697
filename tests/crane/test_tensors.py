from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from crane.tensors import load_tensors, save_tensors


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(6, 4, generator=generator).T,
        "half": torch.randn(5, generator=generator).bfloat16(),
        "step": torch.tensor(3.0),
        "rowptr": torch.arange(3),
        "none": torch.empty(0, 4),
    }


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", tensors())
    same_as_saved(load_tensors(tmp_path / "a"))


def same_as_saved(found: dict[str, Tensor]) -> None:
    expected = tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_no_flipped_byte_changes_a_tensor_unseen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_tensors(path, tensors())
    content, refused = path.read_bytes(), 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        try:
            same_as_saved(load_tensors(path))  # what is damaged says nothing of the tensors
        except ValueError as error:
            refused += "is damaged: " in str(error)
    assert refused > 0.9 * len(content)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_tensors(path, tensors())
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is damaged: "):
            load_tensors(path)


def test_a_file_without_a_checksum_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(ValueError, match="is damaged: its tensors are not those that its checksum was made of"):
        load_tensors(tmp_path / "a")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "a")
