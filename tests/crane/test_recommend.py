"""Recommendations from an exported run: right items, the user's own ids, refusals, files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from crane.config import RunConfig
from crane.data import Dataset, Interactions
from crane.recommend import EXPORT, TrainedModel, export, load, save_table

TEXT_USERS = np.array(["ann", "bö, b", "7"], dtype=object)
TEXT_ITEMS = np.array(["a", "b", "", "d"], dtype=object)


def make_dataset(user_ids=TEXT_USERS, item_ids=TEXT_ITEMS) -> Dataset:
    none = Interactions.from_pairs(np.array([]), np.array([]))
    train = Interactions.from_pairs(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 3, 1, 0, 1, 2]))
    return Dataset("tiny", user_ids, item_ids, train, none, none)


def make_run(folder: Path, dataset: Dataset | None = None) -> Path:
    """A run whose users score item i with i + 1 (ann, 7) or -(i + 1) (bö)."""
    RunConfig.from_mapping({"model": "lightgcn"}).save(folder / "config.yaml")
    item = torch.arange(1.0, 5.0)[:, None]
    export(folder, dataset or make_dataset(), torch.tensor([[1.0], [-1.0], [1.0]]), item)
    return folder


@pytest.fixture
def model(tmp_path) -> TrainedModel:
    return load(make_run(tmp_path))


def test_recommends_the_best_unseen_items_in_the_users_own_ids(model):
    table = model.recommend(["bö, b", "ann"], k=2)
    assert table.to_pydict() == {
        "user": ["bö, b", "bö, b", "ann", "ann"],
        "rank": [1, 2, 1, 2],
        "item": ["a", "", "", "b"],
        "score": [-1.0, -3.0, 3.0, 2.0],
    }
    assert table.schema.field("user").type == pa.string()


def test_users_with_fewer_items_left_get_fewer(model):
    assert model.recommend(["7"], k=3).to_pydict() == {"user": ["7"], "rank": [1], "item": ["d"], "score": [4.0]}
    assert model.recommend(["7"], k=9, mask="none")["item"].to_pylist() == ["d", "", "b", "a"]


def test_items_of_every_split_are_known_unless_the_mask_is_of_training(tmp_path):
    split = Interactions.from_pairs(np.array([1]), np.array([0]))
    model = load(make_run(tmp_path, replace(make_dataset(), validation=split)))
    assert model.recommend(["bö, b"], k=9)["item"].to_pylist() == ["", "d"]
    assert model.recommend(["bö, b"], k=9, mask="train")["item"].to_pylist() == ["a", "", "d"]
    with pytest.raises(ValueError, match="mask: found 'test', expected one of all, train, none"):
        model.recommend(["bö, b"], mask="test")


def test_all_users_keep_the_data_sets_order(model):
    table = model.recommend("all", k=1)
    assert table["user"].to_pylist() == ["ann", "bö, b", "7"]
    assert table["item"].to_pylist() == ["", "a", "d"]


def test_blocks_of_users_change_nothing(model, monkeypatch):
    users = ["7", "ann", "bö, b", "ann"]
    expected = model.recommend(users, k=2)
    monkeypatch.setattr("crane.evaluation.ranking.BLOCK", 2)
    assert model.recommend(users, k=2) == expected


@pytest.mark.parametrize("given", [[30, 10], ["30", "10"], np.array([30, 10])], ids=["int", "text", "numpy"])
def test_integer_ids_stay_integers(tmp_path, given):
    dataset = make_dataset(np.array([10, 20, 30]), np.array([5, 6, 7, 8]))
    table = load(make_run(tmp_path, dataset)).recommend(given, k=1)
    assert table.to_pydict() == {"user": [30, 10], "rank": [1, 1], "item": [8, 7], "score": [4.0, 3.0]}
    assert table.schema.field("item").type == pa.int64()


def test_refuses_unknown_users_by_name(model):
    with pytest.raises(
        ValueError, match=r"^users: 2 of 3 ids are not in the training data, which has ids such as ann: zoe, 8$"
    ):
        model.recommend(["zoe", "ann", 8])
    with pytest.raises(ValueError, match=r"^users: 9 of 9 ids are not in .* such as ann: 0, 1, 2, 3, 4, \.\.\.$"):
        model.recommend([n for n in range(10) if n != 7])


def test_refuses_what_is_no_list_and_wrong_k(model):
    with pytest.raises(TypeError, match=r"^users: found 'ann', expected a list of ids or 'all'$"):
        model.recommend("ann")
    with pytest.raises(ValueError, match=r"^users: found an empty list"):
        model.recommend([])
    with pytest.raises(ValueError, match=r"^k: found 0, expected a positive integer$"):
        model.recommend(["ann"], k=0)
    with pytest.raises(TypeError, match=r"^k: found 2\.5, expected a positive integer$"):
        model.recommend(["ann"], k=2.5)


def test_load_refuses_what_is_no_trained_run(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nothing")
    make_run(tmp_path)
    content = (tmp_path / EXPORT).read_bytes()
    (tmp_path / EXPORT).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"export\.safetensors is damaged"):
        load(tmp_path)
    (tmp_path / EXPORT).unlink()
    with pytest.raises(
        ValueError,
        match=r"no trained model yet \(export\.safetensors is missing\): finish it with crane train --resume ",
    ):
        load(tmp_path)


def test_export_refuses_wrong_embeddings_and_keeps_the_old_file(tmp_path):
    before = (make_run(tmp_path) / EXPORT).read_bytes()
    with pytest.raises(ValueError, match=r"^user and item: found \(2, 4\) rows, expected \(3, 4\)"):
        export(tmp_path, make_dataset(), torch.ones(2, 1), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"^item: row 0 is not finite"):
        export(tmp_path, make_dataset(), torch.ones(3, 1), torch.full((4, 1), torch.nan))
    assert (tmp_path / EXPORT).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", EXPORT]


def test_saves_csv_and_parquet(model, tmp_path):
    table = model.recommend("all", k=2)
    save_table(table, tmp_path / "out.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet") == table
    save_table(table, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].replace('"', "") == "user,rank,item,score"
    read = pyarrow.csv.read_csv(
        tmp_path / "out.csv", convert_options=pyarrow.csv.ConvertOptions(column_types=table.schema)
    )
    assert read == table


def test_save_refuses_other_names_before_writing(model, tmp_path):
    table = model.recommend("all", k=1)
    with pytest.raises(ValueError, match=r"out\.txt', expected a name that ends in \.csv or \.parquet$"):
        save_table(table, tmp_path / "out.txt")
    with pytest.raises(ValueError, match=r"^output: the folder .* does not exist$"):
        save_table(table, tmp_path / "missing" / "out.csv")


def test_save_takes_suffixes_in_capitals(model, tmp_path):
    save_table(model.recommend("all", k=1), tmp_path / "out.CSV")
    assert pyarrow.csv.read_csv(tmp_path / "out.CSV")["user"].to_pylist() == ["ann", "bö, b", "7"]


def test_recommending_imports_neither_models_nor_training(tmp_path):
    script = (
        "import sys, crane; table = crane.load(sys.argv[1]).recommend(['ann'], k=1); assert table.num_rows == 1; "
        "print([name for name in sys.modules if name.startswith(('crane.models', 'crane.training.trainer'))])"
    )
    command = [sys.executable, "-P", "-c", script, str(make_run(tmp_path))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_configuration_comes_with_the_model(model):
    assert model.config.model == "lightgcn"
