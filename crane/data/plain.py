"""Plain interactions in CSV or Parquet, and features with the items' own ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from crane.data.config import DataConfig
from crane.data.dataset import Dataset
from crane.data.features import Features, distinct_ids, is_list, modality_files, read_ids, read_list_column, read_npy
from crane.data.log import build, read_log
from crane.data.table import PARQUET_SUFFIXES, Source

ITEMS = "items.parquet"
ITEM_IDS = "item_ids.txt"
INTERACTIONS = "interactions"


def load_plain(path: Path, config: DataConfig) -> Dataset:
    """Load ``path``, a CSV, tab-separated or Parquet file of user, item and, for a split by time, timestamp.

    Features lie beside it: ``NAME_feat.npy`` with the ids of its rows in ``NAME_feat.ids.txt`` or ``item_ids.txt``
    (one a line), or list columns of ``items.parquet``, which has the ids in its item column.

    Raises:
        ValueError: names the file and, where there is one, the row that cannot be used.
    """
    item = config.item_column or "item"
    log = read_log(
        Source.of(path), config, (config.user_column or "user", item, config.timestamp_column or "timestamp")
    )
    folder = path.parent
    features = {
        modality: _read(modality, file, item, config) for modality, file in _files(config, folder, item).items()
    }
    name = folder.resolve().name if path.stem == INTERACTIONS else path.stem
    return build(name, log, features, config)


def read_npy_with_ids(path: Path, config: DataConfig, default_ids: np.ndarray | None = None) -> Features:
    """Read a ``.npy`` file whose rows are the items of a list beside it, or of ``default_ids`` without such a list.

    Raises:
        ValueError: there is no list, its length differs, or the file is refused.
    """
    own = path.with_suffix(".ids.txt")
    for sidecar in (own, path.with_name(ITEM_IDS)):
        if sidecar.is_file():
            return read_npy(path, config.invalid_features, read_ids(sidecar))
    if default_ids is None:
        raise ValueError(f"{path} says nothing of its items, expected their ids, one a line, in {own} or {ITEM_IDS}")
    return read_npy(path, config.invalid_features, default_ids)


def _files(config: DataConfig, folder: Path, item: str) -> dict[str, Path]:
    files = modality_files(config, folder)
    table = folder / ITEMS
    if config.modalities == "auto" and table.is_file():
        Source.of(table).header()
        lists = [field.name for field in pq.read_schema(table) if is_list(field.type)]
        files |= {name: table for name in lists if name != item}
    return files


def _read(modality: str, path: Path, item: str, config: DataConfig) -> Features:
    if path.suffix.lower() not in PARQUET_SUFFIXES:
        return read_npy_with_ids(path, config)
    table = Source.of(path).read([item, modality])
    return read_list_column(table[modality], distinct_ids(table[item]), config.invalid_features)
