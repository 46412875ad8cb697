"""MMRec's format: ``NAME.inter`` with a split column, and one ``.npy`` file a modality, whose row is the item id."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crane.data.config import DataConfig
from crane.data.dataset import SPLITS, Dataset, Interactions
from crane.data.features import Features, modality_files, read_npy
from crane.data.split import TRAIN
from crane.data.table import Column, Source
from crane.words import counted

LABEL = "x_label"


def load_mmrec(path: Path, config: DataConfig) -> Dataset:
    """Load ``path``, an ``.inter`` file; features are ``NAME_feat.npy`` beside it.

    Users are the user ids of the training split; items are the rows of the feature files or, without any, the item
    ids that occur. Repeats within a split are merged; users without a training interaction are left out, as MMRec
    leaves them out of its evaluation.

    Raises:
        ValueError: a column is missing, an id is no integer of 0 or more or has no feature row, a label is not 0, 1
            or 2, a pair is in two splits, modalities differ in rows, or an option asks for another split or a k-core.
    """
    if config.k_core > 1:
        raise ValueError(f"data.k_core is {config.k_core}, but {path} brings its own split, expected 0 for MMRec data")
    if config.split != "random":
        raise ValueError(f"data.split is {config.split!r}, but {path} brings its own split, expected the default")
    user, item = config.user_column or "userID", config.item_column or "itemID"
    table = Source.of(path).read([user, item, LABEL])
    users, items = table[user].naturals(), table[item].naturals()
    labels = _labels(table[LABEL])
    features = {
        modality: read_npy(file, config.invalid_features)
        for modality, file in modality_files(config, path.parent).items()
    }
    item_ids = _item_ids(table[item], items, features)
    notices: list[str] = []
    users, items, labels = _merge(table[user], users, items, labels, notices)
    user_ids, users, items, labels = _trained(path, users, items, labels, notices)
    items = np.searchsorted(item_ids, items)
    train, validation, test = (
        Interactions.from_pairs(users[labels == label], items[labels == label]) for label in range(len(SPLITS))
    )
    matrices = {}
    for modality, read in features.items():
        matrices[modality], missing = read.filled(item_ids, len(item_ids))
        if missing:
            notices.append(
                f"{counted(missing, 'item')} with invalid {modality} features, replaced by the mean of the others"
            )
    return Dataset(path.stem, user_ids, item_ids, train, validation, test, matrices, tuple(notices))


def _labels(column: Column) -> np.ndarray:
    expected = "0 (training), 1 (validation) or 2 (test)"
    labels = column.naturals(expected)
    wrong = labels >= len(SPLITS)
    if wrong.any():
        raise column.refusal(int(np.argmax(wrong)), expected)
    return labels


def _item_ids(column: Column, items: np.ndarray, features: dict[str, Features]) -> np.ndarray:
    """All item ids: the rows of the feature files, which must agree; without any, those that occur."""
    if not features:
        return np.unique(items)
    first, *others = features.values()
    n_rows = len(first.matrix)
    for other in others:
        if len(other.matrix) != n_rows:
            raise ValueError(
                f"{other.path} has {len(other.matrix)} rows and {first.path} has {n_rows}, "
                f"expected one row an item in both"
            )
    if items.max() >= n_rows:
        row = int(np.argmax(items >= n_rows))
        raise column.refusal(row, f"one of the {n_rows} rows of {first.path}, 0 to {n_rows - 1}")
    return np.arange(n_rows)


def _merge(
    column: Column, users: np.ndarray, items: np.ndarray, labels: np.ndarray, notices: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((labels, items, users))
    users, items, labels = users[order], items[order], labels[order]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
    torn = again[1:] & (labels[1:] != labels[:-1])
    if torn.any():
        at = int(np.argmax(torn))
        source = column.source
        raise ValueError(
            f"{source.place(int(order[at + 1]))}: user {users[at]} and item {items[at]} are in "
            f"{SPLITS[labels[at + 1]]}, and in {SPLITS[labels[at]]} by line {source.line(int(order[at]))}, "
            f"expected one split"
        )
    if again.any():
        notices.append(f"{counted(int(again.sum()), 'repeated interaction')} merged")
    return users[~again], items[~again], labels[~again]


def _trained(
    path: Path, users: np.ndarray, items: np.ndarray, labels: np.ndarray, notices: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Drop users without a training interaction, and index the others."""
    user_ids = np.unique(users[labels == TRAIN])
    if not len(user_ids):
        raise ValueError(f"{path} has no row with {LABEL} 0, expected a training split")
    position = np.minimum(np.searchsorted(user_ids, users), len(user_ids) - 1)
    keep = user_ids[position] == users
    if not keep.all():
        left_out = np.unique(users[~keep])
        notices.append(
            f"{counted(len(left_out), 'user')} without training interactions (the first is {left_out[0]}) left out, "
            f"with {counted(int((~keep).sum()), 'interaction')}"
        )
    return user_ids, position[keep], items[keep], labels[keep]
