"""Recommendations from a trained run, in the user's own ids.

A run holds one file, ``export.safetensors``, with the final embeddings, the original ids and the interactions.
Recommending needs neither the data set nor the model's code.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from crane.config import RunConfig
from crane.data.dataset import SPLITS
from crane.evaluation.ranking import check_finite, ranked_blocks
from crane.files import write_atomically
from crane.tensors import load_tensors, save_tensors
from crane.training.folder import RunFolder
from crane.words import listed
from crane_kernels import Graph

if TYPE_CHECKING:
    from crane.data import Dataset

EXPORT = "export.safetensors"
MASKS = ("all", "train", "none")
TABLE_SUFFIXES = (".csv", ".parquet")
_MASKED = {"train": ("train",), "all": SPLITS}

Ids = NDArray[Any]


@dataclass(frozen=True)
class TrainedModel:
    """What recommending needs of a finished run.

    Attributes:
        folder: the run's folder.
        user_ids: (U,) original ids, int64 or str objects.
        item_ids: (I,) original ids, int64 or str objects.
        user: (U, d) final user embeddings.
        item: (I, d) final item embeddings.
        seen: U x I graphs of the interactions in the training data ("train") and in all splits ("all").
    """

    folder: RunFolder = field(repr=False)
    user_ids: Ids = field(repr=False)
    item_ids: Ids = field(repr=False)
    user: Tensor = field(repr=False)
    item: Tensor = field(repr=False)
    seen: dict[str, Graph] = field(repr=False)

    def recommend(
        self,
        users: Sequence[Any] | Ids | Literal["all"],
        k: int = 20,
        mask: Literal["all", "train", "none"] = "all",
    ) -> pa.Table:
        """The best ``k`` items of each user by descending score; ties go to the item whose id sorts first.

        Args:
            users: original ids, in the order wanted, or "all". Ids are compared as text: 7 and "7" are the same user.
            k: items a user; users with fewer items left get fewer.
            mask: leave out the items that the user has in "all" of the data, or in the training data alone ("train"),
                as evaluation does, or leave out "none".

        Returns:
            A table with columns user and item (int64 or string, as the ids are), rank (int64, from 1), score (float).

        Raises:
            TypeError: ``users`` is a single id, or ``k`` is no integer.
            ValueError: an unknown user, no users at all, ``k`` below 1, or an unknown ``mask``.
        """
        if mask not in MASKS:
            raise ValueError(f"mask: found {mask!r}, expected one of {', '.join(MASKS)}")
        wanted = min(_positive("k", k), len(self.item_ids))
        rows = self._rows(users)
        blocks = list(ranked_blocks(self.user, self.item, self.seen.get(mask), rows, wanted))
        scores, items = torch.cat([block[1] for block in blocks]), torch.cat([block[2] for block in blocks])
        kept = items >= 0
        row, rank = torch.nonzero(kept, as_tuple=True)
        return pa.table(
            {
                "user": _id_array(self.user_ids[rows[row].numpy()]),
                "rank": pa.array((rank + 1).numpy()),
                "item": _id_array(self.item_ids[items[kept].numpy()]),
                "score": pa.array(scores[kept].numpy()),
            }
        )

    def _rows(self, users: Sequence[Any] | Ids | Literal["all"]) -> Tensor:
        if isinstance(users, str) and users == "all":
            return torch.arange(len(self.user_ids))
        if isinstance(users, str) or not isinstance(users, Sequence | np.ndarray):
            raise TypeError(f"users: found {users!r}, expected a list of ids or 'all'")
        if len(users) == 0:
            raise ValueError("users: found an empty list, expected at least one id")
        rows = [self._row_of.get(str(user), -1) for user in users]
        unknown = list(dict.fromkeys(str(user) for user, row in zip(users, rows, strict=True) if row < 0))
        if unknown:
            raise ValueError(
                f"users: {len(unknown)} of {len(users)} ids are not in the training data, which has ids such as "
                f"{self.user_ids[0]}: {listed(unknown)}"
            )
        return torch.tensor(rows)

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration, read when first asked for."""
        return RunConfig.load(self.folder.config)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {str(user): row for row, user in enumerate(self.user_ids)}


def export(run_dir: str | Path, dataset: Dataset, user: Tensor, item: Tensor) -> None:
    """Write ``RUN/export.safetensors``, which :func:`load` reads; an older one is replaced at once or not at all.

    Args:
        run_dir: the run's folder.
        dataset: the data set trained on, for its ids and interactions.
        user: (U, d) final user embeddings.
        item: (I, d) final item embeddings.

    Raises:
        ValueError: the embeddings do not fit the data set, or are not finite.
    """
    found, expected = (len(user), len(item)), (dataset.n_users, dataset.n_items)
    if found != expected:
        raise ValueError(f"user and item: found {found} rows, expected {expected} as the data set has")
    check_finite(user, item)
    tensors = {"user": user, "item": item}
    for mask, splits in _MASKED.items():
        seen = dataset.graph(*splits)
        tensors |= {f"seen.{mask}.rowptr": seen.rowptr, f"seen.{mask}.col": seen.col}
    tensors |= _pack_ids("user_ids", dataset.user_ids) | _pack_ids("item_ids", dataset.item_ids)
    save_tensors(Path(run_dir) / EXPORT, tensors)


def load(run_dir: str | Path) -> TrainedModel:
    """Load a trained run.

    Raises:
        ValueError: there is no such run, it holds no trained model yet, or its export is damaged.
    """
    folder = RunFolder(Path(run_dir))
    folder.check_run()
    path = folder.path / EXPORT
    if not path.is_file():
        raise ValueError(
            f"the run {run_dir} holds no trained model yet ({EXPORT} is missing): finish it with crane train --resume "
            f"{run_dir}"
        )
    try:
        tensors = load_tensors(path)
        shape = len(tensors["user"]), len(tensors["item"])
        return TrainedModel(
            folder=folder,
            user_ids=_unpack_ids("user_ids", tensors),
            item_ids=_unpack_ids("item_ids", tensors),
            user=tensors["user"],
            item=tensors["item"],
            seen={
                mask: Graph(tensors[f"seen.{mask}.rowptr"], tensors[f"seen.{mask}.col"], None, shape)
                for mask in _MASKED
            },
        )
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it lacks the entry {error}") from error
    except ValueError as error:
        raise ValueError(f"{error}; make it again with crane train --resume {run_dir}") from error


def save_table(table: pa.Table, path: str | Path) -> None:
    """Write recommendations as CSV or Parquet, by the suffix of ``path``: the whole file or none.

    Raises:
        ValueError: another suffix, or a folder that does not exist.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_table_path(path)
    write = pyarrow.csv.write_csv if path.suffix.lower() == ".csv" else pyarrow.parquet.write_table
    try:
        write_atomically(path, lambda temporary: write(table, str(temporary)))
    except OSError as error:
        raise OSError(f"output: the file {str(path)!r} cannot be written: {error.strerror or error}") from error


def check_table_path(path: Path) -> None:
    """Refuse a path that :func:`save_table` cannot write, before anything is computed.

    Raises:
        ValueError: the suffix is neither .csv nor .parquet, or the folder does not exist.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"output: found {str(path)!r}, expected a name that ends in {' or '.join(TABLE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"output: the folder {str(path.parent)!r} does not exist")


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, expected a positive integer") from None
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name}: found {value!r}, expected a positive integer")
    return number


def _pack_ids(name: str, ids: Ids) -> dict[str, Tensor]:
    """Integers as they are; text as UTF-8 bytes with the end of each id, as Arrow stores it."""
    if ids.dtype.kind == "i":
        return {name: torch.from_numpy(ids.astype(np.int64))}
    encoded = [str(entry).encode() for entry in ids]
    ends = np.cumsum([len(entry) for entry in encoded], dtype=np.int64)
    content = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return {f"{name}.bytes": torch.from_numpy(content.copy()), f"{name}.ends": torch.from_numpy(ends)}


def _unpack_ids(name: str, tensors: dict[str, Tensor]) -> Ids:
    if name in tensors:
        return tensors[name].numpy()
    content, ends = tensors[f"{name}.bytes"].numpy().tobytes(), tensors[f"{name}.ends"].tolist()
    starts = [0, *ends[:-1]]
    return np.array([content[a:b].decode() for a, b in zip(starts, ends, strict=True)], dtype=object)


def _id_array(ids: Ids) -> pa.Array:
    return pa.array(ids) if ids.dtype.kind == "i" else pa.array(ids, type=pa.string())
