"""RecBole's atomic files."""

from __future__ import annotations

import numpy as np
import pytest

from crane.data import DataConfig, load_dataset
from crane.data.dataset import SPLITS

INTER = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
INTER += [f"u{u}\t{i}\t{5 - i % 3}.0\t{100 - i}" for u in range(3) for i in range(1, 5)]
ITEM = [
    "item_id:token\ttitle:token_seq\timage:float_seq\ttext:float_seq",
    "4\tfour and\t4.0 4.5\t1 0 0",
    "1\tone\t1.0 1.5\t0 1 0",
    "2\ttwo\t\t0 0 1e0",
    "9\tnine\t 9.0  9.5 \t0 0 0",
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "ml"
    path.mkdir()
    write(path, INTER, ".inter")
    write(path, ITEM, ".item")
    return path


def write(folder, lines, suffix):
    (folder / f"ml{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(folder, **settings):
    return load_dataset(DataConfig(path=str(folder), **settings))


def test_reads_interactions_and_float_sequences(folder):
    data = load(folder)
    assert data.name == "ml"
    assert data.user_ids.tolist() == ["u0", "u1", "u2"]
    assert data.item_ids.tolist() == [1, 2, 3, 4, 9]
    assert [len(getattr(data, split)) for split in SPLITS] == [6, 3, 3]
    assert list(data.features) == ["image", "text"]
    mean = np.mean([[4, 4.5], [1, 1.5], [9, 9.5]], axis=0)
    np.testing.assert_allclose(data.features["image"], [[1, 1.5], mean, mean, [4, 4.5], [9, 9.5]], rtol=1e-6)
    np.testing.assert_allclose(data.features["text"][[0, 1, 3]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert data.notices == (
        "1 item with features and without interactions",
        "2 items without image features, filled with the mean of the others",
        "1 item without text features, filled with the mean of the others",
    )


def test_splits_by_time(folder):
    data = load(folder, split="time", format="recbole")
    assert data.item_ids[data.test.items].tolist() == [1, 1, 1]
    assert data.item_ids[data.validation.items].tolist() == [2, 2, 2]


def test_npy_rows_are_the_rows_of_the_item_file(folder, refused):
    np.save(folder / "audio_feat.npy", np.arange(4.0)[:, None])
    data = load(folder)
    assert list(data.features) == ["image", "text", "audio"]
    np.testing.assert_array_equal(data.features["audio"][:, 0], [1, 2, 1.5, 0, 3])
    assert list(load(folder, modalities={"text": "ml.item", "sound": "audio_feat.npy"}).features) == ["text", "sound"]
    np.save(folder / "audio_feat.npy", np.arange(5.0)[:, None])
    refused(folder, "audio_feat.npy has 5 rows, expected 4, one for each id")
    (folder / "audio_feat.ids.txt").write_text("1\n2\n3\n4\n5\n")
    np.testing.assert_array_equal(load(folder).features["audio"][:, 0], [0, 1, 2, 3, 4, 2])


def test_without_an_item_file(folder, refused):
    (folder / "ml.item").unlink()
    data = load(folder)
    assert data.features == {}
    assert data.item_ids.tolist() == [1, 2, 3, 4]
    np.save(folder / "image_feat.npy", np.ones((4, 2)))
    refused(folder, "image_feat.npy says nothing of its items")


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("7\tx\t1.0\t1 0 0", "ml.item line 6: image:float_seq has 1 numbers, expected 2 as in rows before"),
        ("7\tx\t1.0 b\t1 0 0", "ml.item line 6: image:float_seq holds 'b', expected numbers"),
        ("7\tx\t1.0 nan\t1 0 0", "ml.item line 6 (item 7): value 2 is nan, expected finite numbers"),
        ("4\tx\t1.0 1.0\t1 0 0", "ml.item line 6: item_id:token is '4', expected every id once"),
        ("7\tx\t1.0 1.0", "ml.item line 6: found 3 fields, expected 4"),
    ],
)
def test_refuses_an_item_row(folder, line, fragment, refused):
    write(folder, [*ITEM, line], ".item")
    refused(folder, fragment)


def test_refuses_interactions(folder, refused):
    write(folder, [*INTER, "\t1\t1\t1"], ".inter")
    refused(folder, "ml.inter line 14: user_id:token is '', expected an id")
    write(folder, [*INTER, "u\t1\t1\tlate"], ".inter")
    refused(folder, "ml.inter line 14: timestamp:float is 'late', expected a number", split="time")
    write(folder, ["user_id:token\titem:token", "u\t1"], ".inter")
    refused(folder, "ml.inter: no column 'item_id:token', found 'user_id:token', 'item:token'")
    write(folder, ["user_id:token\titem_id:token", "u\t77"], ".inter")
    refused(folder, "none of which is in")
