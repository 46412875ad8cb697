"""Configuration files of the MMRec toolbox: what is taken over, what is refused, what is named."""

from pathlib import Path

import numpy as np
import pytest

from crane import mmrec
from crane.cli import main
from crane.config import RunConfig
from crane.training.folder import RunFolder

OVERALL = """\
gpu_id: 0
use_gpu: False
seed: [999]
data_path: 'data/'
inter_splitting_label: 'x_label'
filter_out_cod_start_users: True
embedding_size: 64
weight_decay: 0.0
epochs: 3
stopping_step: 20
train_batch_size: 64
learner: adam
learning_rate: 1e-3
learning_rate_scheduler: [0.25, 2]
eval_step: 1
training_neg_sample_num: 1
USER_ID_FIELD: user_id:token
metrics: ["Recall", "NDCG", "Precision", "MAP"]
topk: [5, 20]
valid_metric: Recall@20
max_txt_len: 32
hyper_parameters: ["seed"]
"""
DATASET = """\
USER_ID_FIELD: userID
ITEM_ID_FIELD: itemID
inter_file_name: 'toy.inter'
vision_feature_file: 'image_feat.npy'
text_feature_file: 'text_feat.npy'
"""
CRANE = """\
embedding_size: 16
feat_embed_dim: 16
lambda_coeff: 0.9
reg_weight: [1e-04]
n_mm_layers: 1
n_ui_layers: 2
knn_k: 5
mm_image_weight: 0.1
dropout: [0.0]
hyper_parameters: ["dropout", "reg_weight"]
"""
FREEDOM = "embedding_size: 8\nn_ui_layers: 1\nknn_k: 4\ndropout: [0.8, 0.9]\nreg_weight: 0.001\n"


@pytest.fixture
def toolbox(tmp_path: Path) -> Path:
    """An MMRec folder with one data set and the configurations of two models."""
    folder, generator = tmp_path / "MMRec", np.random.default_rng(0)
    for part, text in {
        "overall": OVERALL,
        "dataset/toy": DATASET,
        "model/CRANE": CRANE,
        "model/FREEDOM": FREEDOM,
    }.items():
        file = folder / "src" / "configs" / f"{part}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    data = folder / "data" / "toy"
    data.mkdir(parents=True)
    rows = ["userID\titemID\tx_label"]
    for user in range(40):
        rows += [f"{user}\t{item}\t{max(0, place - 3)}" for place, item in enumerate(generator.choice(30, 6, False))]
    (data / "toy.inter").write_text("\n".join(rows) + "\n")
    for name, width in (("image", 24), ("text", 12)):
        np.save(data / f"{name}_feat.npy", generator.standard_normal((30, width), dtype=np.float32))
    return folder


def change(toolbox: Path, part: str, text: str) -> None:
    with (toolbox / "src" / "configs" / f"{part}.yaml").open("a") as file:
        file.write(text)


def test_settings_are_taken_over(toolbox: Path) -> None:
    found = mmrec.read(toolbox)
    config = RunConfig.from_mapping(found.mapping)
    model, training = config.model_config, config.training
    assert (model.dim, model.layers, model.semantic_layers, model.neighbours) == (16, 2, 1, 5)
    assert (model.image_weight, model.edge_keep, model.attention, model.recursions) == (0.1, 1.0, "items", 0)
    assert model.trainable_features
    assert config.seed == 999
    assert (training.epochs, training.patience, training.batch_size, training.eval_every) == (3, 21, 64, 1)
    assert (training.learning_rate, training.metric, training.device) == (1e-3, "recall@20", "cpu")
    assert (training.schedule, training.decay_factor, training.decay_epochs) == ("step", 0.5, 1)  # 0.25^(1/2)
    assert config.evaluation.metrics == ("recall", "ndcg", "precision", "map")
    assert config.evaluation.ks == (5, 20)
    assert config.data.path == str(toolbox / "data" / "toy" / "toy.inter")
    assert config.data.modalities == {"image": "image_feat.npy", "text": "text_feat.npy"}
    assert (config.data.user_column, config.data.item_column) == ("userID", "itemID")
    assert found.unused == ("gpu_id", "lambda_coeff", "max_txt_len", "reg_weight")


def test_a_list_to_search_needs_a_choice(toolbox: Path) -> None:
    with pytest.raises(ValueError, match=r"FREEDOM.yaml: dropout lists 2 values .* give --set model.edge_keep=..."):
        mmrec.read(toolbox, "freedom")
    config = RunConfig.from_mapping(mmrec.read(toolbox, "freedom", given=frozenset({"model.edge_keep"})).mapping)
    assert (config.model_config.feature_weight, config.model_config.neighbours) == (0.001, 4)
    assert config.model_config.l2 == 0  # it weighs its features' losses and nothing else


def test_what_means_something_else_must_be_given_by_its_name_here(toolbox: Path) -> None:
    change(toolbox, "model/LightGCN", "n_layers: 2\nreg_weight: [1e-4]\n")
    message = r"LightGCN.yaml: reg_weight has another meaning than model.l2: give --set model.l2=... for it"
    with pytest.raises(ValueError, match=message):
        mmrec.read(toolbox, "lightgcn")
    found = mmrec.read(toolbox, "lightgcn", given=frozenset({"model.l2"}))
    assert found.mapping["model"] == {"name": "lightgcn", "dim": 64, "layers": 2}
    assert "reg_weight" not in found.unused


def test_freedom_has_one_layer_of_the_item_graph(toolbox: Path) -> None:
    given = frozenset({"model.edge_keep"})
    change(toolbox, "model/FREEDOM", "n_mm_layers: 1\n")
    assert "n_mm_layers" not in mmrec.read(toolbox, "freedom", given=given).unused
    change(toolbox, "model/FREEDOM", "n_mm_layers: 2\n")
    with pytest.raises(ValueError, match="n_mm_layers is 2, and only 1 has a meaning here"):
        mmrec.read(toolbox, "freedom", given=given)


def test_data_by_name_by_folder_and_alone(toolbox: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "toy"
    elsewhere.mkdir()
    assert mmrec.read(toolbox, data="toy").mapping["data"]["path"] == str(toolbox / "data" / "toy" / "toy.inter")
    assert mmrec.read(toolbox, data=str(elsewhere)).mapping["data"]["path"] == str(elsewhere)
    assert mmrec.read(toolbox / "src").mapping == mmrec.read(toolbox).mapping
    change(toolbox, "dataset/other", DATASET)
    with pytest.raises(ValueError, match="has files for other, toy: give --data"):
        mmrec.read(toolbox)


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("overall", "learner: sgd\n", "overall.yaml: learner is 'sgd', and only 'adam' has a meaning here"),
        ("overall", "weight_decay: 0.1\n", "weight_decay is 0.1"),
        ("overall", "training_neg_sample_num: 2\n", "training_neg_sample_num is 2"),
        ("model/CRANE", "feat_embed_dim: 32\n", "feat_embed_dim is 32 and embedding_size is 16, expected one width"),
        ("dataset/toy", "seed: [1, 2]\n", "toy.yaml: seed lists 2 values"),
        ("overall", "stopping_step: abc\n", "overall.yaml: stopping_step is 'abc', expected a whole number"),
        ("overall", "stopping_step: 2.5\n", "stopping_step is 2.5, expected a whole number"),
        ("overall", "stopping_step: true\n", "stopping_step is True, expected a whole number"),
        ("overall", "use_gpu: cuda\n", "use_gpu is 'cuda', expected True or False"),
        ("overall", "metrics: Recall\n", "metrics is 'Recall', expected a list of names"),
        ("overall", "learning_rate_scheduler: 0.96\n", "learning_rate_scheduler is 0.96, expected a list of a factor"),
        ("overall", "learning_rate_scheduler: [0.96, 0]\n", r"is \[0.96, 0\], expected a list of a factor and epochs"),
        ("model/CRANE", "dropout: few\n", "CRANE.yaml: dropout is 'few', expected a number"),
        ("model/CRANE", "dropout: 1.0\n", "CRANE.yaml: dropout is 1.0, expected a number from 0 to below 1"),
        ("model/CRANE", "dropout: -0.1\n", "CRANE.yaml: dropout is -0.1, expected a number from 0 to below 1"),
        ("model/CRANE", "knn_k: '16'\n", "CRANE.yaml: knn_k is '16', and model.neighbours must be an integer"),
        ("overall", "epochs:\n", "overall.yaml: epochs is None, and training.epochs must be an integer"),
        ("overall", "topk: [0]\n", r"overall.yaml: topk is \[0\], and evaluation.ks "),
        ("overall", "data_path: nowhere\n", "found no folder .*nowhere/toy"),
    ],
)
def test_what_has_no_meaning_is_refused(toolbox: Path, part: str, text: str, message: str) -> None:
    change(toolbox, part, text)
    with pytest.raises(ValueError, match=message):
        mmrec.read(toolbox)


def test_lists_of_one_value_are_the_value(toolbox: Path) -> None:
    change(toolbox, "model/CRANE", "embedding_size: [16]\nweight_decay: [0.0]\n")
    assert RunConfig.from_mapping(mmrec.read(toolbox).mapping).model_config.dim == 16


def test_missing_files_are_named(toolbox: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder that holds MMRec's configs"):
        mmrec.read(tmp_path)
    with pytest.raises(ValueError, match=r"has no file for vbpr, expected one such as VBPR\.yaml"):
        mmrec.read(toolbox, "vbpr")
    with pytest.raises(ValueError, match="model must be one of crane, freedom, lightgcn, vbpr, found 'bm3'"):
        mmrec.read(toolbox, "bm3")


def test_trains(toolbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--mmrec", str(toolbox), "--output", str(run), "--threads", "1", "--set", "training.epochs=1"]
    assert main(arguments) == 0
    assert "without a meaning here: gpu_id, lambda_coeff, max_txt_len, reg_weight" in capsys.readouterr().err
    config = RunConfig.load(RunFolder(run).config)
    assert (config.training.epochs, config.model_config.attention) == (1, "items")
    other = ["train", "--mmrec", str(toolbox), "--model", "freedom", "--data", str(toolbox / "data" / "toy")]
    other += ["--output", str(tmp_path / "freedom"), "--threads", "1", "--seed", "3"]
    assert main([*other, "--set", "training.epochs=1", "model.edge_keep=0.5"]) == 0
    assert RunConfig.load(RunFolder(tmp_path / "freedom").config).seed == 3
    assert main([*arguments, "--config", "file.yaml"]) == 2
    assert "--mmrec and --config both name files" in capsys.readouterr().err
    assert main([*arguments, "data.path=elsewhere"]) == 2
    assert "--mmrec finds the data by --data, so --set data.path cannot be given" in capsys.readouterr().err
