"""From a log of interactions in people's own ids to a data set: merge, filter, match features, split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crane.data.config import DataConfig
from crane.data.dataset import Dataset, Interactions
from crane.data.features import Features
from crane.data.kcore import k_core
from crane.data.split import TEST, TRAIN, VALIDATION, split_interactions
from crane.data.table import Source
from crane.words import counted


@dataclass(frozen=True)
class Log:
    """Interactions as a file lists them.

    Attributes:
        source: the file.
        user_ids, item_ids: distinct ids, ascending, int64 or object arrays of str.
        users, items: (E,) int64, indices into them.
        times: (E,) numbers, ``None`` when the split does not need them.
    """

    source: Source
    user_ids: np.ndarray
    item_ids: np.ndarray
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None

    def __len__(self) -> int:
        return len(self.users)


def read_log(source: Source, config: DataConfig, columns: tuple[str, str, str]) -> Log:
    """Read users, items and, for a split by time, times from the named columns."""
    user, item, time = columns
    table = source.read([user, item, time] if config.split == "time" else [user, item])
    user_ids, users = table[user].identifiers()
    item_ids, items = table[item].identifiers()
    return Log(source, user_ids, item_ids, users, items, table[time].times() if config.split == "time" else None)


def build(name: str, log: Log, features: dict[str, Features], config: DataConfig) -> Dataset:
    """Turn a log and the features read beside it into a data set.

    Repeated pairs become one (the earliest, when there are times); then the k-core is taken; then each user's
    interactions are split. Items are those of the log and, without a k-core, those of the feature files too.

    Raises:
        ValueError: the k-core is empty, or a feature file has no item of the log.
    """
    merged = _merge(log)
    notices = []
    if len(merged) < len(log):
        notices.append(f"{counted(len(log) - len(merged), 'repeated interaction')} merged")
    kept = _filter(merged, config.k_core)
    if len(kept) < len(merged):
        notices.append(
            f"{config.k_core}-core: {len(kept.user_ids):,} of {len(merged.user_ids):,} users, "
            f"{len(kept.item_ids):,} of {len(merged.item_ids):,} items, "
            f"{len(kept):,} of {len(merged):,} interactions kept"
        )
    item_ids = _catalogue(kept.item_ids, features if config.k_core <= 1 else {})
    if len(item_ids) > len(kept.item_ids):
        notices.append(f"{counted(len(item_ids) - len(kept.item_ids), 'item')} with features and without interactions")
    matrices = {}
    for modality, read in features.items():
        matrices[modality], missing = _align(read, item_ids, kept)
        if missing:
            notices.append(
                f"{counted(missing, 'item')} without {modality} features, filled with the mean of the others"
            )
    items = _positions(item_ids, kept.item_ids)[kept.items]
    labels = split_interactions(kept.users, config.ratios, times=kept.times, seed=config.seed)
    train, validation, test = (
        Interactions.from_pairs(kept.users[labels == label], items[labels == label])
        for label in (TRAIN, VALIDATION, TEST)
    )
    return Dataset(name, kept.user_ids, item_ids, train, validation, test, matrices, tuple(notices))


def _merge(log: Log) -> Log:
    """Keep one of equal pairs, the earliest; without times the order is by user, then item, whatever the file's."""
    if log.times is None:
        pairs = Interactions.from_pairs(log.users, log.items)
        return replace(log, users=pairs.users, items=pairs.items)
    order = np.lexsort((log.times, log.items, log.users))
    users, items = log.users[order], log.items[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return _select(log, np.sort(order[first]))  # in the order of the file, which decides between equal times


def _filter(log: Log, k: int) -> Log:
    keep = k_core(log.users, log.items, k)
    if not keep.any():
        raise ValueError(f"data.k_core={k} leaves no interaction of {log.source.path}, expected a smaller number")
    return log if keep.all() else _compact(_select(log, np.flatnonzero(keep)))


def _select(log: Log, rows: np.ndarray) -> Log:
    times = None if log.times is None else log.times[rows]
    return replace(log, users=log.users[rows], items=log.items[rows], times=times)


def _compact(log: Log) -> Log:
    """Drop ids that no interaction uses."""
    user, users = np.unique(log.users, return_inverse=True)
    item, items = np.unique(log.items, return_inverse=True)
    return replace(log, user_ids=log.user_ids[user], item_ids=log.item_ids[item], users=users, items=items)


def _catalogue(item_ids: np.ndarray, features: dict[str, Features]) -> np.ndarray:
    """The item ids of the log and of all feature files, ascending; text if any of them is text."""
    parts = [item_ids, *(read.ids for read in features.values())]
    return np.unique(np.concatenate(_same_kind(parts)))


def _same_kind(parts: list[np.ndarray]) -> list[np.ndarray]:
    if all(part.dtype == object for part in parts) or all(part.dtype != object for part in parts):
        return parts
    return [part if part.dtype == object else part.astype(str).astype(object) for part in parts]


def _positions(catalogue: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The index of each id in the sorted catalogue, -1 where it is not there."""
    catalogue, ids = _same_kind([catalogue, ids])
    order = np.argsort(catalogue, kind="stable")
    position = np.minimum(np.searchsorted(catalogue, ids, sorter=order), len(catalogue) - 1)
    return np.where(catalogue[order[position]] == ids, order[position], -1)


def _align(read: Features, item_ids: np.ndarray, log: Log) -> tuple[np.ndarray, int]:
    """The modality's matrix with one row for each of ``item_ids``, and how many rows are the mean."""
    if not (_positions(log.item_ids, read.ids[read.present]) >= 0).any():
        known = read.ids[np.argmax(read.present)]
        raise ValueError(
            f"{read.path} has features of items such as {known}, none of which is in {log.source.path}, "
            f"which has items such as {log.item_ids[0]}"
        )
    return read.filled(_positions(item_ids, read.ids), len(item_ids))
