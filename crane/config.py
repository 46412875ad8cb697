"""The configuration of a run: typed frozen dataclasses, read from YAML and ``--set key=value``.

A configuration file mirrors the dataclasses::

    model: {name: lightgcn, layers: 3}     # or simply: model: lightgcn
    seed: 0
    data: {path: data/baby}
    training: {learning_rate: 0.001}
    evaluation: {ks: [10, 20]}

What is not given takes, in this order, the model's own training defaults (``Recommender.training_defaults``) and the
dataclass defaults. Unknown names and wrong types are refused by their dotted name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from crane.data.config import DataConfig
from crane.evaluation import KS, METRICS
from crane.files import write_text

MAX_THREADS = 1024


class _Text(str):
    """A value typed on the command line: text, whose type the setting decides."""


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Refuse a ``value`` below ``minimum``, infinite or NaN.

    Raises:
        ValueError: naming the setting, the value found and the range expected.
    """
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, found {value}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite, found {value}")


def check_above(name: str, value: float, limit: float) -> None:
    """Refuse a ``value`` that is not above ``limit``, or infinite or NaN.

    Raises:
        ValueError: naming the setting, the value found and the range expected.
    """
    if not value > limit:
        raise ValueError(f"{name} must be above {limit}, found {value}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite, found {value}")


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a ``value`` outside the closed interval from ``low`` to ``high``.

    Raises:
        ValueError: naming the setting, the value found and the range expected.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, found {value}")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        epochs: most epochs to train.
        batch_size: training triples (user, positive, negative) a step.
        learning_rate: Adam's learning rate, before the schedule and a parameter group's ``lr_scale``.
        schedule: ``constant``; ``cosine`` from the learning rate to zero over ``epochs``; ``step`` multiplies it by
            ``decay_factor`` every ``decay_epochs`` epochs.
        decay_factor: see ``schedule``.
        decay_epochs: see ``schedule``.
        warmup_epochs: epochs (fractions count) over which the learning rate rises linearly from zero.
        gradient_clip: largest norm of the whole gradient; ``null`` does not clip.
        metric: validation metric that decides early stopping and the best epoch, such as ``recall@20``.
        patience: evaluations without a new best value of ``metric`` after which training stops; ``null`` trains all
            ``epochs``. The best epoch is that of the best value, or the last one where the data set has no validation
            interactions, which needs ``null``.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        device: ``auto`` (the first CUDA device, else the CPU) or a torch device such as ``cpu`` or ``cuda:1``.
        threads: CPU threads; ``null`` leaves torch's choice. Runs repeat bit for bit with the same number.
        tensorboard: also write TensorBoard events into the run folder.
    """

    epochs: int = 200
    batch_size: int = 2048
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "step"] = "constant"
    decay_factor: float = 0.5
    decay_epochs: int = 20
    warmup_epochs: float = 0.0
    gradient_clip: float | None = None
    metric: str = "recall@20"
    patience: int | None = 20
    eval_every: int = 1
    device: str = "auto"
    threads: int | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_every", "decay_epochs"):
            check_at_least(name, getattr(self, name), 1)
        if self.patience is not None:
            check_at_least("patience", self.patience, 1)
        check_above("learning_rate", self.learning_rate, 0)
        check_above("decay_factor", self.decay_factor, 0)
        check_between("decay_factor", self.decay_factor, 0, 1)
        check_at_least("warmup_epochs", self.warmup_epochs, 0)
        if self.gradient_clip is not None:
            check_above("gradient_clip", self.gradient_clip, 0)
        if self.threads is not None:
            check_between("threads", self.threads, 1, MAX_THREADS)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, found {self.device!r}")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured: full ranking over all items, training items masked.

    Attributes:
        ks: cut-offs of the rankings.
        metrics: names among ``recall ndcg precision map hitrate mrr``.
        mask_validation: at test, also mask each user's validation items.
    """

    ks: tuple[int, ...] = KS
    metrics: tuple[str, ...] = tuple(METRICS)
    mask_validation: bool = False

    def __post_init__(self) -> None:
        if not self.ks or not self.metrics:
            raise ValueError("ks and metrics must each hold at least one entry, found an empty list")
        for name in ("ks", "metrics"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{name} must name each entry once, found {twice} twice")
        for k in self.ks:
            check_at_least("ks", k, 1)
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(
                    f"metrics must be among {', '.join(METRICS)}, found {metric!r}{_nearest(metric, tuple(METRICS))}"
                )

    def names(self) -> tuple[str, ...]:
        """Every value an evaluation gives, as ``recall@20``."""
        return tuple(f"{metric}@{k}" for metric in self.metrics for k in self.ks)

    def rows(self, values: Mapping[str, float]) -> list[list[str]]:
        """Those values for people: one row a metric, with a column for its name and one for each cut-off."""
        return [[metric, *(f"{values[f'{metric}@{k}']:.4f}" for k in self.ks)] for metric in self.metrics]


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run, besides the data's contents.

    Attributes:
        model: name of the model, a key of ``crane.models.MODELS``.
        seed: seed of initial weights, sampling and the model's own randomness.
        model_config: the model's own settings, an instance of its ``config_class``; ``model.*`` in YAML.
    """

    model: str
    seed: int
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    model_config: Any

    def __post_init__(self) -> None:
        check_at_least("seed", self.seed, 0)
        if self.training.metric not in self.evaluation.names():
            raise ValueError(
                f"training.metric must be one of what evaluation measures ({', '.join(self.evaluation.names())}), "
                f"found {self.training.metric!r}{_nearest(self.training.metric, self.evaluation.names())}"
            )

    def to_mapping(self) -> dict[str, Any]:
        """The plain mapping that YAML holds; ``from_mapping`` of it gives an equal configuration."""
        return {
            "model": {"name": self.model, **_plain(self.model_config)},
            "seed": self.seed,
            "data": _plain(self.data),
            "training": _plain(self.training),
            "evaluation": _plain(self.evaluation),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RunConfig:
        """Check ``mapping`` and complete it with the defaults.

        Raises:
            ValueError: an unknown name or a value outside its range.
            TypeError: a value of the wrong type.
        """
        from crane.models import MODELS

        sections = ("model", "seed", "data", "training", "evaluation")
        _refuse_unknown(mapping, sections, "")
        name, model_settings = _model_section(mapping.get("model", "crane"))
        if name not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, found {name!r}{_nearest(name, tuple(MODELS))}")
        model = MODELS[name]
        training = {**model.training_defaults, **_section(mapping, "training")}
        return cls(
            model=name,
            seed=_convert(mapping.get("seed", 0), int, "seed"),
            data=build(DataConfig, _section(mapping, "data"), "data"),
            training=build(TrainingConfig, training, "training"),
            evaluation=build(EvaluationConfig, _section(mapping, "evaluation"), "evaluation"),
            model_config=build(model.config_class, model_settings, "model"),
        )

    def save(self, path: Path) -> None:
        """Write the configuration as YAML, atomically."""
        write_text(path, yaml.dump(self.to_mapping(), Dumper=_Writer, sort_keys=False, allow_unicode=True))

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """Read what :meth:`save` wrote, which holds every setting.

        Raises:
            ValueError: the file is missing, is no YAML mapping, lacks a setting, or holds unknown names or values.
            TypeError: a value has the wrong type.
        """
        content = read_yaml(path)
        config = cls.from_mapping(content)
        missing = sorted(_names(config.to_mapping()) - _names(content))
        if missing:
            raise ValueError(f"{path} is damaged: it lacks {missing[0]}, expected every setting that the run has")
        return config


def _names(mapping: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all settings."""
    found: set[str] = set()
    for name, value in mapping.items():
        found |= _names(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + str(name)}
    return found


# Numbers as YAML 1.2 has them (its core schema): 010 is ten, 1e-3 a number, and 1:30 and 2020-01-01 are text.
_INTEGER = re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"  # after integers
)
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


class _Reader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, with the numbers of YAML 1.2."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Writer(yaml.SafeDumper):
    """Quotes text that would be read as a number by either version of YAML."""


_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Reader, _Writer):
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Reader.add_constructor("tag:yaml.org,2002:int", _Reader.construct_yaml_int)


class _DistinctKeys(_Reader):
    """Refuses a key that stands twice in a mapping, of which YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, *, repeated_keys: bool = False) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        path: the file.
        repeated_keys: let a key stand twice; the last one counts.

    Raises:
        ValueError: the file is missing, is no YAML mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Reader if repeated_keys else _DistinctKeys)
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"the configuration {path} is not valid YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"the configuration {path} must hold a mapping, found {_type_name(content)}")
    return content


def merge(base: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Lay ``key=value`` settings (dotted keys) over a configuration mapping; ``base`` stays as it is.

    The value is read according to the setting's type; a setting that holds text takes it literally.

    Raises:
        ValueError: a setting has no ``=``, or its key goes through something that is no section.
    """
    result = _copy(base)
    for setting in settings:
        key, equals, text = setting.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ValueError(f"--set expects key=value such as training.epochs=10, found {setting!r}")
        if names == ["model"]:
            names = ["model", "name"]
        _put(result, names, _Text(text.strip()), key)
    return result


def _put(mapping: dict[str, Any], names: Sequence[str], value: Any, key: str) -> None:
    if isinstance(mapping.get("model"), str):
        mapping["model"] = {"name": mapping["model"]}
    for name in names[:-1]:
        mapping = mapping.setdefault(name, {})
        if not isinstance(mapping, dict):
            raise ValueError(f"--set {key}: {name} is a value, not a section")
    mapping[names[-1]] = value


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _model_section(content: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(content, str):
        return str(content), {}
    if not isinstance(content, Mapping):
        raise TypeError(f"model must be a name or a mapping, found {_type_name(content)}")
    settings = dict(content)
    return _convert(settings.pop("name", "crane"), str, "model.name"), settings


def _section(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    content = mapping.get(name)
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise TypeError(f"{name} must be a mapping of settings, found {_shown(content)}")
    return dict(content)


def build(cls: type[Any], content: Mapping[str, Any], path: str) -> Any:
    """A dataclass of settings from their values by name; ``path`` is what errors put before a name.

    Raises:
        TypeError: a value is of the wrong type.
        ValueError: a setting is not known, or the dataclass refuses a value.
    """
    hints = get_type_hints(cls)
    names = tuple(f.name for f in dataclasses.fields(cls))
    _refuse_unknown(content, names, path)
    values = {name: _convert(value, hints[name], f"{path}.{name}") for name, value in content.items()}
    try:
        return cls(**values)
    except ValueError as error:
        if str(error).startswith(f"{path}."):
            raise
        joint = "." if str(error).split(" ", 1)[0] in names else ": "
        raise ValueError(f"{path}{joint}{error}") from error


def _refuse_unknown(content: Mapping[str, Any], names: Sequence[str], path: str) -> None:
    prefix = f"{path}." if path else ""
    for key in content:
        if key not in names:
            hint = _nearest(str(key), names, prefix) or f", expected one of {', '.join(names)}"
            raise ValueError(f"unknown setting {prefix}{key}{hint}")


def _nearest(word: str, names: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, names, n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def _convert(value: Any, hint: Any, path: str) -> Any:
    """``value`` as the type ``hint`` says, or a TypeError that names ``path``."""
    origin = get_origin(hint)
    if origin is typing.Union or origin is types.UnionType:
        return _convert_union(value, get_args(hint), path)
    if origin is Literal:
        return _convert_literal(value, get_args(hint), path)
    if origin is tuple:
        return _convert_tuple(value, get_args(hint), path)
    if origin is dict:
        return _convert_dict(value, get_args(hint), path)
    return _convert_scalar(value, hint, path)


def _convert_union(value: Any, options: tuple[Any, ...], path: str) -> Any:
    content = _parsed(value)
    if content is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    for kind in kinds:
        try:
            return _convert(value, kind, path)
        except (TypeError, ValueError):
            if len(kinds) == 1 and content is not None:
                raise
    raise _wrong_type(path, " or ".join(_hint_name(option) for option in options), content)


def _convert_literal(value: Any, options: tuple[Any, ...], path: str) -> Any:
    for candidate in (value, _parsed(value)):
        for option in options:
            if candidate == option and isinstance(candidate, type(option)):
                return option
    hint = _nearest(value, [str(o) for o in options]) if isinstance(value, str) else ""
    raise ValueError(f"{path} must be one of {', '.join(str(o) for o in options)}, found {_shown(value)}{hint}")


def _convert_tuple(value: Any, arguments: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    content = _parsed(value)
    if isinstance(value, _Text) and not isinstance(content, list):
        content = [_Text(part.strip()) for part in value.split(",") if part.strip()]
    if not isinstance(content, list | tuple):
        raise _wrong_type(path, "a list", content)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(entry, arguments[0], path) for entry in content)
    if len(content) != len(arguments):
        raise ValueError(f"{path} must hold {len(arguments)} entries, found {len(content)}")
    return tuple(_convert(entry, hint, path) for entry, hint in zip(content, arguments, strict=True))


def _convert_dict(value: Any, arguments: tuple[Any, ...], path: str) -> dict[Any, Any]:
    content = _parsed(value)
    if not isinstance(content, Mapping):
        raise _wrong_type(path, "a mapping", content)
    return {_convert(k, arguments[0], path): _convert(v, arguments[1], f"{path}.{k}") for k, v in content.items()}


def _convert_scalar(value: Any, kind: Any, path: str) -> Any:
    if kind is str and isinstance(value, str):
        return str(value)
    content = _parsed(value)
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        content = _as_float(content)
    if type(content) is not kind:
        raise _wrong_type(path, _hint_name(kind), content)
    return content


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _parsed(value: Any) -> Any:
    if not isinstance(value, _Text):
        return value
    try:
        return yaml.load(value, _Reader)
    except _UNREADABLE:
        return str(value)


def _wrong_type(path: str, expected: str, found: Any) -> TypeError:
    return TypeError(f"{path} must be {expected}, found {_shown(found)}")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{_type_name(value)} {str(value)!r}" if isinstance(value, str) else f"{_type_name(value)} {value!r}"


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def _hint_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(option) for option in get_args(hint))
    if get_origin(hint) is dict:
        return f"a mapping {{name: {_hint_name(get_args(hint)[1])}, ...}}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _type_name(value: Any) -> str:
    names = {bool: "the truth value", int: "the integer", float: "the number", list: "the list", dict: "the mapping"}
    return "the text" if isinstance(value, str) else names.get(type(value), type(value).__name__)


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as what YAML holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
