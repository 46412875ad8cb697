"""Configuration files of the MMRec toolbox as settings of a run.

MMRec lays three files over each other: ``configs/overall.yaml``, ``configs/dataset/NAME.yaml`` and
``configs/model/MODEL.yaml``. What has a meaning here is taken over; what would change results and has none is refused;
the rest is named in :attr:`Settings.unused`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crane.config import RunConfig, read_yaml

_METRICS = {"hit": "hitrate"}
_SEARCHED = "hyper_parameters"


@dataclass(frozen=True)
class Settings:
    """What was found.

    Attributes:
        mapping: settings as :meth:`crane.config.RunConfig.from_mapping` takes them.
        unused: names of MMRec's settings that have no meaning here.
    """

    mapping: dict[str, Any]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class _Target:
    """Where a value goes, by dotted name, how it is written there, and what it must be for that."""

    name: str
    convert: Callable[[Any], Any] = lambda value: value
    expected: str = ""


def _metric(value: Any) -> str:
    name, at, k = str(value).lower().partition("@")
    return _METRICS.get(name, name) + at + k


def _metrics(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError
    return [_metric(entry) for entry in value]


def _patience(steps: Any) -> int:
    if type(steps) is not int:  # True is one for isinstance
        raise TypeError
    return steps + 1  # MMRec stops once more than that many evaluations in a row are no better


def _kept(dropout: Any) -> float:
    if not 0 <= float(dropout) < 1:
        raise ValueError
    return 1 - float(dropout)


def _device(use_gpu: Any) -> str:
    if not isinstance(use_gpu, bool):
        raise TypeError
    return "auto" if use_gpu else "cpu"


_TARGETS = {
    "seed": _Target("seed"),
    "epochs": _Target("training.epochs"),
    "stopping_step": _Target("training.patience", _patience, "a whole number"),
    "eval_step": _Target("training.eval_every"),
    "train_batch_size": _Target("training.batch_size"),
    "learning_rate": _Target("training.learning_rate"),
    "valid_metric": _Target("training.metric", _metric),
    "use_gpu": _Target("training.device", _device, "True or False"),
    "metrics": _Target("evaluation.metrics", _metrics, "a list of names"),
    "topk": _Target("evaluation.ks"),
    "USER_ID_FIELD": _Target("data.user_column"),
    "ITEM_ID_FIELD": _Target("data.item_column"),
    "vision_feature_file": _Target("data.modalities.image"),
    "text_feature_file": _Target("data.modalities.text"),
    "embedding_size": _Target("model.dim"),
}
_OF_GRAPHS = {
    "n_ui_layers": _Target("model.layers"),
    "knn_k": _Target("model.neighbours"),
    "mm_image_weight": _Target("model.image_weight"),
    "dropout": _Target("model.edge_keep", _kept, "a number from 0 to below 1"),
}
_OF_MODEL = {
    "crane": {
        **_OF_GRAPHS,
        "n_layers": _Target("model.layers"),
        "n_mm_layers": _Target("model.semantic_layers"),
        "n_heads": _Target("model.heads"),
    },
    "freedom": {**_OF_GRAPHS, "reg_weight": _Target("model.feature_weight")},
    "lightgcn": {"n_layers": _Target("model.layers")},
    "vbpr": {},
}
# Settings with one value that means what happens here anyway.
_ONLY = {
    "learner": "adam",
    "weight_decay": 0,
    "inter_splitting_label": "x_label",
    "filter_out_cod_start_users": True,
    "training_neg_sample_num": 1,
    "use_neg_sampling": True,
    "use_full_sampling": False,
    "end2end": False,
    "req_training": True,
}
_ONLY_OF_MODEL = {"freedom": {"n_mm_layers": 1}}
# Settings that mean something else here: MMRec weighs norms of embeddings, and l2 weighs their squares.
_OTHERWISE = {"lightgcn": {"reg_weight": "model.l2"}, "vbpr": {"reg_weight": "model.l2"}}
_LISTS = {"metrics", "topk", "learning_rate_scheduler", "weight_size"}
_READ = {_SEARCHED, "data_path", "inter_file_name", "learning_rate_scheduler", "feat_embed_dim"}


def read(folder: Path, model: str = "crane", data: str | None = None, given: frozenset[str] = frozenset()) -> Settings:
    """Read the configuration of one model and data set.

    Args:
        folder: what holds ``configs`` (MMRec's ``src``), or holds ``src/configs``.
        model: a key of ``crane.models.MODELS``; its file is found by its name in any case.
        data: the data set's folder, or its name; None: the only one that has a file in ``configs/dataset``.
        given: dotted names of settings that come from elsewhere, and may be lists here.

    Raises:
        ValueError: a file is missing, several data sets could be meant, a value has no meaning here, or a setting lists
            several values to search.
    """
    if model not in _OF_MODEL:
        raise ValueError(f"model must be one of {', '.join(_OF_MODEL)}, found {model!r}")
    configs = _configs(folder)
    name, path = _dataset(configs / "dataset", data)
    files = (configs / "overall.yaml", configs / "dataset" / f"{name}.yaml", _model_file(configs / "model", model))
    values: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for file in files:
        content = read_yaml(file, repeated_keys=True)  # as MMRec reads them
        values |= content
        origin |= dict.fromkeys(content, file)
    targets = {**_TARGETS, **_OF_MODEL[model]}
    mapping: dict[str, Any] = {"model": {"name": model}, "data": {"format": "mmrec"}}
    mapping["training"] = _schedule(values, origin)
    mapping["model"] |= _fixed(model)
    mapping["data"]["path"] = str(path or _data_folder(configs, values, name) / str(values.get("inter_file_name", "")))
    taken: dict[str, str] = {}
    for key, target in targets.items():
        if key in values and target.name not in given:
            value = _single(key, values[key], origin[key], target.name)
            _put(mapping, target.name, _converted(key, value, origin[key], target))
            taken[target.name] = f"{origin[key]}: {key} is {value!r}"
    only, otherwise = {**_ONLY, **_ONLY_OF_MODEL.get(model, {})}, _OTHERWISE.get(model, {})
    for key, expected in only.items():
        if key in values and _lower(_unwrapped(values[key])) != expected:
            raise ValueError(f"{origin[key]}: {key} is {values[key]!r}, and only {expected!r} has a meaning here")
    for key, name in otherwise.items():
        if key in values and name not in given:
            raise ValueError(f"{origin[key]}: {key} has another meaning than {name}: give --set {name}=... for it")
    _check_widths(values, origin)
    _check_values(mapping, taken)
    return Settings(mapping, tuple(sorted(values.keys() - targets.keys() - only.keys() - otherwise.keys() - _READ)))


def _check_values(mapping: Mapping[str, Any], taken: Mapping[str, str]) -> None:
    """Name MMRec's file and key where a run refuses a value; ``taken`` says by dotted name what each was."""
    try:
        RunConfig.from_mapping(mapping)
    except (TypeError, ValueError) as error:
        found = taken.get(str(error).split(" ", 1)[0])
        if found is not None:  # else it may be about what comes from elsewhere, and is said once that is there
            raise ValueError(f"{found}, and {error}") from error


def _fixed(model: str) -> dict[str, Any]:
    """Settings with which the model is MMRec's, whatever its files say."""
    if model == "crane":
        from crane.legacy import SETTINGS

        return SETTINGS
    return {"l2": 0.0} if model == "freedom" else {}  # all that FREEDOM weighs there is its features' own losses


def _configs(folder: Path) -> Path:
    for candidate in (folder / "configs", folder / "src" / "configs"):
        if candidate.is_dir():
            return candidate
    raise ValueError(f"--mmrec is {str(folder)!r}, expected a folder that holds MMRec's configs or src/configs")


def _dataset(folder: Path, data: str | None) -> tuple[str, Path | None]:
    """Name of the data set's file, and where the data are if that is known."""
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if data is not None and data in names and not Path(data).is_dir():
        return data, None
    if data is not None and Path(data).resolve().name in names:
        return Path(data).resolve().name, Path(data)
    if len(names) == 1:
        return names[0], None if data is None else Path(data)
    found = ", ".join(names) or "none"
    raise ValueError(f"{folder} has files for {found}: give --data with a name of those, or a folder of that name")


def _model_file(folder: Path, model: str) -> Path:
    for file in sorted(folder.glob("*.yaml")):
        if file.stem.lower() == model:
            return file
    raise ValueError(f"{folder} has no file for {model}, expected one such as {model.upper()}.yaml")


def _data_folder(configs: Path, values: Mapping[str, Any], name: str) -> Path:
    """MMRec's own data folder, which is relative to where MMRec is started."""
    relative = Path(str(values.get("data_path", "data/"))) / name
    candidates = [configs.parent / relative, configs.parent.parent / relative]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ValueError(f"found no folder {candidates[0]} (data_path and the data set's name), expected it, or --data")


def _single(key: str, value: Any, file: Path, name: str) -> Any:
    """The value, or the only one of a list of values to search."""
    if key in _LISTS:
        return value
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"{file}: {key} lists {len(value)} values to search, and a run has one: give --set {name}=...")
    return _unwrapped(value)


def _converted(key: str, value: Any, file: Path, target: _Target) -> Any:
    try:
        return target.convert(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {key} is {value!r}, expected {target.expected}") from error


def _schedule(values: Mapping[str, Any], origin: Mapping[str, Path]) -> dict[str, Any]:
    """MMRec multiplies the learning rate by factor^(1 / epochs) every epoch."""
    key = "learning_rate_scheduler"
    value = values.get(key, [1.0, 1])
    try:
        factor, epochs = map(float, value)
        root = factor ** (1 / epochs)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{origin[key]}: {key} is {value!r}, expected a list of a factor and epochs") from error
    return {"schedule": "constant"} if factor == 1 else {"schedule": "step", "decay_factor": root, "decay_epochs": 1}


def _check_widths(values: Mapping[str, Any], origin: Mapping[str, Path]) -> None:
    width, of_features = (_unwrapped(values.get(key)) for key in ("embedding_size", "feat_embed_dim"))
    if of_features is not None and of_features != width:
        file = origin["feat_embed_dim"]
        raise ValueError(f"{file}: feat_embed_dim is {of_features} and embedding_size is {width}, expected one width")


def _unwrapped(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _put(mapping: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
    mapping[last] = value
