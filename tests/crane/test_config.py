import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from crane.config import EvaluationConfig, RunConfig, TrainingConfig, merge, read_yaml
from crane.models import MODELS, LightGCN


def resolve(base: dict[str, Any] | None = None, *settings: str) -> RunConfig:
    return RunConfig.from_mapping(merge({"model": "lightgcn", **(base or {})}, settings))


@dataclass(frozen=True)
class OddConfig:
    """Settings of every kind that a model may have."""

    width: int = 8
    switch: bool = True
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    pair: tuple[float, float] = (1.0, 2.0)
    mixed: Literal["auto"] | dict[str, str] = "auto"


class Odd(LightGCN):
    config_class: ClassVar[type[Any]] = OddConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.5, "epochs": 7}


@pytest.fixture(autouse=True)
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "odd", Odd)


def test_settings_reach_their_sections() -> None:
    config = resolve(None, "training.learning_rate=1e-3", "model.layers=2", "seed=5", "data.path=demo")
    assert (config.training.learning_rate, config.model_config.layers, config.seed) == (1e-3, 2, 5)
    assert config.data.path == "demo"


def test_model_can_be_a_name_or_a_mapping_and_be_overridden() -> None:
    assert resolve({"model": "odd"}).model == "odd"
    assert resolve({"model": {"name": "odd", "width": 3}}).model_config.width == 3
    assert resolve({"model": "lightgcn"}, "model=odd", "model.width=4").model_config.width == 4


def test_training_defaults_lie_between_the_dataclass_and_what_is_given() -> None:
    config = resolve({"model": "odd", "training": {"epochs": 3}})
    assert config.training == TrainingConfig(learning_rate=0.5, epochs=3)


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        ("model.width=12", "width", 12),
        ("model.width=010", "width", 10),
        ("model.width=0o10", "width", 8),
        ("model.width=0xff", "width", 255),
        ("model.width=-3", "width", -3),
        ("model.rate=1e3", "rate", 1000.0),
        ("model.rate=.5", "rate", 0.5),
        ("model.rate=010.5", "rate", 10.5),
        ("model.switch=false", "switch", False),
        ("model.rate=3", "rate", 3.0),
        ("model.rate=2.5E-4", "rate", 2.5e-4),
        ("model.kind=b", "kind", "b"),
        ("model.maybe=4", "maybe", 4),
        ("model.maybe=null", "maybe", None),
        ("model.weights={image: 1}", "weights", {"image": 1.0}),
        ("model.pair=3,4", "pair", (3.0, 4.0)),
        ("model.pair=[3, 4.5]", "pair", (3.0, 4.5)),
        ("model.mixed=auto", "mixed", "auto"),
        ("model.mixed={a: 7.npy}", "mixed", {"a": "7.npy"}),
    ],
)
def test_text_is_read_as_the_type_of_the_setting(setting: str, name: str, expected: object) -> None:
    value = getattr(resolve({"model": "odd"}, setting).model_config, name)
    assert value == expected
    assert type(value) is type(expected)


def test_configuration_reloads_to_the_same(tmp_path: Path) -> None:
    settings = ("model.maybe=3", "model.weights={image: 0.1}", "training.learning_rate=1e-05", "evaluation.ks=20,7")
    config = resolve({"model": "odd"}, *settings)
    config.save(tmp_path / "config.yaml")
    again = RunConfig.load(tmp_path / "config.yaml")
    assert again == config
    assert again.evaluation.ks == (20, 7)


def test_numbers_in_files_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 010\nb: 1:30\nc: 2020-13-45\nd: 1e-3\ne: -.inf\nf: [0x1F, +7, 1., '1e3']\ng: yes\n")
    assert read_yaml(path) == {
        **{"a": 10, "b": "1:30", "c": "2020-13-45", "d": 1e-3, "e": -math.inf},
        **{"f": [31, 7, 1.0, "1e3"], "g": True},
    }


@pytest.mark.parametrize("text", ["1e-3", "010", "1:30", "2020-01-01", "0o17", "1_000", "yes", "7"])
def test_text_that_looks_like_a_number_stays_text(tmp_path: Path, text: str) -> None:
    config = resolve(None, f"data.path={text}")
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml").data.path == text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainin.epochs=3", "unknown setting trainin, did you mean training?"),
        ("training.lerning_rate=3", "unknown setting training.lerning_rate, did you mean training.learning_rate?"),
        ("model.recursion=3", "unknown setting model.recursion, expected one of dim"),
        ("data.pth=x", "did you mean data.path?"),
        ("training.epochs=0", "training.epochs must be at least 1, found 0"),
        ("training.learning_rate=-1", "learning_rate must be above 0, found -1.0"),
        ("training.learning_rate=.nan", "learning_rate must be above 0, found nan"),
        ("training.learning_rate=.inf", "learning_rate must be finite, found inf"),
        ("training.warmup_epochs=.inf", "warmup_epochs must be finite, found inf"),
        ("training.patience=0", "patience must be at least 1, found 0"),
        ("training.decay_factor=0", "decay_factor must be above 0, found 0.0"),
        ("training.decay_factor=2", "decay_factor must be between 0 and 1, found 2.0"),
        (
            "training.schedule=cosin",
            "training.schedule must be one of constant, cosine, step, found the text 'cosin', did",
        ),
        ("training.device=gpu", "device must be auto, cpu, cuda or cuda:N, found 'gpu'"),
        ("training.metric=recall@30", "training.metric must be one of what evaluation measures"),
        ("evaluation.metrics=recal", "metrics must be among recall, ndcg"),
        ("evaluation.ks=5,20,5", "evaluation.ks must name each entry once, found 5 twice"),
        ("evaluation.metrics=recall,recall", "metrics must name each entry once, found recall twice"),
        ("data.path=", "^data.path is empty, expected a folder, a file or 'demo'"),
        ("data.k_core=-1", "^data.k_core is -1, expected 0 or more"),
        ("evaluation.ks=[]", "evaluation.ks and metrics must each hold at least one entry"),
        ("training.learning_rate=1" + "0" * 400, "^training.learning_rate must be finite, found inf"),
        ("seed=-1", "seed must be at least 0"),
        ("model=lightgnc", "model must be one of .*, found 'lightgnc', did you mean lightgcn?"),
        ("model.layers=-1", "model.layers must be at least 0, found -1"),
        ("training.epochs", "--set expects key=value such as training.epochs=10, found 'training.epochs'"),
        ("seed.x=1", "--set seed.x: seed is a value, not a section"),
        ("training.metric.x=1", "training.metric must be text"),
    ],
)
def test_wrong_values_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message.replace("?", r"\?")) as caught:
        resolve({"seed": 0}, setting)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epochs=ten", "training.epochs must be an integer, found the text 'ten'"),
        ("training.epochs=1.5", "training.epochs must be an integer, found the number 1.5"),
        ("training.epochs=", "training.epochs must be an integer, found nothing$"),
        ("data.modalities=image", r"must be 'auto' or a mapping \{name: text, ...\}, found the text 'image'"),
        ("data.modalities={image:x.npy}", r"a mapping \{name: text, ...\}, found the mapping \{'image:x.npy': None\}"),
        ("training.epochs=true", "training.epochs must be an integer, found the truth value True"),
        ("training.tensorboard=1", "training.tensorboard must be true or false, found the integer 1"),
        ("training.learning_rate=fast", "training.learning_rate must be a number, found the text 'fast'"),
        ("training.epochs=1:30", "^training.epochs must be an integer, found the text '1:30'"),
        ("training.epochs=1_000", "^training.epochs must be an integer, found the text '1_000'"),
        ("training.epochs=2020-13-45", "^training.epochs must be an integer, found the text '2020-13-45'"),
        ("training.epochs=!!int x", "^training.epochs must be an integer, found the text '!!int x'"),
        ("training.epochs=" + "9" * 5000, "^training.epochs must be an integer, found the text '999"),
        ("training.epochs=" + "[" * 500, "^training.epochs must be an integer, found the text '"),
        ("training.threads=two", "training.threads must be an integer, found the text 'two'"),
        ("evaluation.ks=5,x", "evaluation.ks must be an integer, found the text 'x'"),
        ("training=5", "training must be a mapping of settings, found the text"),
        ("model.layers=[1]", "model.layers must be an integer"),
    ],
)
def test_wrong_types_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        resolve(None, setting)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"training": {"metric": 20}}, "training.metric must be text, found the integer 20"),
        ({"training": {"threads": [2]}}, "training.threads must be an integer, found the list"),
        ({"training": [1]}, "training must be a mapping"),
        ({"model": 3}, "model must be a name or a mapping, found the integer"),
        (
            {"model": {"name": "odd", "mixed": 3}},
            r"model.mixed must be 'auto' or a mapping \{name: .*, ...\}, found the integer 3",
        ),
        ({"model": {"name": "odd", "weights": {"image": "much"}}}, "model.weights.image must be a number"),
    ],
)
def test_wrong_types_in_files_are_refused_by_name(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        resolve(mapping)


def test_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.pair must hold 2 entries, found 3"):
        resolve({"model": "odd"}, "model.pair=1,2,3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "must hold a mapping, found the list"),
        ("a: [", r"c\.yaml is not valid YAML: while parsing a flow .* at line 1, column 5"),
        ("a: \xff", "is not valid YAML"),
        ("a: !!int x", r"c\.yaml is not valid YAML"),
        ("a: " + "[" * 500, r"c\.yaml is not valid YAML"),
        ("a: 1\nb: {c: 2, c: 3}", "the key 'c' stands twice"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_yaml(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the configuration .*nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_merge_leaves_its_argument_alone() -> None:
    base = {"model": "lightgcn", "training": {"epochs": 1}}
    merge(base, ["training.epochs=2", "model.layers=1"])
    assert base == {"model": "lightgcn", "training": {"epochs": 1}}


def test_evaluation_names() -> None:
    assert EvaluationConfig(ks=(5, 20), metrics=("recall", "map")).names() == (
        "recall@5",
        "recall@20",
        "map@5",
        "map@20",
    )
