"""RecBole's atomic files: ``NAME.inter`` and, for features, ``NAME.item``; headers are ``name:type``."""

from __future__ import annotations

from pathlib import Path

from crane.data.config import DataConfig
from crane.data.dataset import Dataset
from crane.data.features import Features, distinct_ids, modality_files, read_list_column
from crane.data.log import build, read_log
from crane.data.plain import read_npy_with_ids
from crane.data.table import Source


def load_recbole(path: Path, config: DataConfig) -> Dataset:
    """Load ``path``, an ``.inter`` file with ``user_id:token``, ``item_id:token`` and perhaps ``timestamp:float``.

    Features are the ``float_seq`` columns of ``NAME.item`` and the ``NAME_feat.npy`` files beside it, whose rows are
    those of a list of ids (as for plain interactions) or, without one, those of ``NAME.item``.

    Raises:
        ValueError: names the file and, where there is one, the row that cannot be used.
    """
    item = config.item_column or "item_id"
    names = (
        f"{config.user_column or 'user_id'}:token",
        f"{item}:token",
        f"{config.timestamp_column or 'timestamp'}:float",
    )
    log = read_log(Source.of(path), config, names)
    return build(path.stem, log, _read_features(path, f"{item}:token", config), config)


def _read_features(path: Path, item: str, config: DataConfig) -> dict[str, Features]:
    table = Source.of(path.with_suffix(".item"))
    files = modality_files(config, path.parent)
    ids, columns = None, {}
    if table.path.is_file():
        wanted = [name for name, file in files.items() if file == table.path]
        if config.modalities == "auto":
            wanted = [name.removesuffix(":float_seq") for name in table.header() if name.endswith(":float_seq")]
            files = dict.fromkeys(wanted, table.path) | files
        columns = table.read([item, *(f"{name}:float_seq" for name in wanted)])
        ids = distinct_ids(columns[item])
    features = {}
    for modality, file in files.items():
        if ids is not None and file == table.path:
            features[modality] = read_list_column(columns[f"{modality}:float_seq"], ids, config.invalid_features)
        else:
            features[modality] = read_npy_with_ids(file, config, ids)
    return features
