"""MMRec's format: what is read, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from crane.data import DataConfig, load_dataset

HEADER = "userID\titemID\trating\ttimestamp\tx_label"
ROWS = [
    "0\t0\t5.0\t1\t0",
    "0\t1\t5.0\t2\t1",
    "0\t2\t5.0\t3\t2",
    "1\t2\t1.0\t4\t0",
    "1\t0\t1.0\t5\t0",
    "2\t1\t1.0\t6\t0",
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "toy"
    path.mkdir()
    write(path, ROWS)
    np.save(path / "image_feat.npy", np.arange(12, dtype=np.float64).reshape(4, 3))
    np.save(path / "text_feat.npy", np.ones((4, 2), dtype=np.float32))
    return path


def write(folder, rows, header=HEADER):
    (folder / "toy.inter").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def load(folder, **settings):
    return load_dataset(DataConfig(path=str(folder), **settings))


def test_reads_the_folder_as_it_is(folder):
    data = load(folder)
    assert data.name == "toy"
    assert data.user_ids.tolist() == [0, 1, 2]
    assert data.item_ids.tolist() == [0, 1, 2, 3]
    assert (data.train.users.tolist(), data.train.items.tolist()) == ([0, 1, 1, 2], [0, 0, 2, 1])
    assert (data.validation.users.tolist(), data.validation.items.tolist()) == ([0], [1])
    assert (data.test.users.tolist(), data.test.items.tolist()) == ([0], [2])
    assert list(data.features) == ["image", "text"]
    assert data.features["image"].dtype == np.float32
    np.testing.assert_array_equal(data.features["image"], np.arange(12).reshape(4, 3))
    assert data.notices == ()


def test_the_inter_file_can_be_named_and_columns_moved(folder):
    write(folder, ["0\t7\t1", "0\t3\t2"], header="x_label\tuserID\titemID")
    data = load_dataset(DataConfig(path=str(folder / "toy.inter")))
    assert data.user_ids.tolist() == [3, 7]
    assert data.train.items.tolist() == [2, 1]


def test_any_number_of_modalities(folder):
    np.save(folder / "audio_feat.npy", np.ones((4, 5), dtype=np.float32))
    assert list(load(folder).features) == ["audio", "image", "text"]
    assert list(load(folder, modalities={"words": "text_feat.npy"}).features) == ["words"]
    assert load(folder, modalities={}).features == {}


def test_blank_lines_and_windows_line_ends(folder, refused):
    (folder / "toy.inter").write_bytes("\r\n".join([HEADER, "", *ROWS, ""]).encode("utf-8-sig"))
    assert len(load(folder).train) == 4
    (folder / "toy.inter").write_bytes("\r\n".join([HEADER, "", *ROWS, "", "3\tx\t1\t1\t0"]).encode())
    refused(folder, "toy.inter line 10: itemID is 'x', expected an integer of 0 or more")


def test_repeats_within_a_split_are_merged(folder):
    write(folder, [*ROWS, ROWS[0], ROWS[0]])
    data = load(folder)
    assert len(data.train) == 4
    assert data.notices == ("2 repeated interactions merged",)


def test_users_without_training_items_are_left_out(folder):
    write(folder, [*ROWS, "7\t1\t1\t1\t1", "7\t2\t1\t1\t2", "9\t0\t1\t1\t0"])
    data = load(folder)
    assert data.user_ids.tolist() == [0, 1, 2, 9]
    assert data.train.users.tolist() == [0, 1, 1, 2, 3]
    assert (len(data.validation), len(data.test)) == (1, 1)
    assert data.notices == ("1 user without training interactions (the first is 7) left out, with 2 interactions",)


def test_invalid_features_can_be_replaced(folder):
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    matrix[2, 1] = np.inf
    np.save(folder / "image_feat.npy", matrix)
    data = load(folder, invalid_features="mean")
    np.testing.assert_allclose(data.features["image"][2], matrix[[0, 1, 3]].mean(axis=0))
    assert data.notices == ("1 item with invalid image features, replaced by the mean of the others",)


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        ("3\t-1\t1\t1\t0", "line 8: itemID is '-1', expected an integer of 0 or more"),
        ("-3\t1\t1\t1\t0", "line 8: userID is '-3', expected an integer of 0 or more"),
        ("3\tB07\t1\t1\t0", "line 8: itemID is 'B07', expected an integer of 0 or more"),
        ("3.0\t1\t1\t1\t0", "line 8: userID is '3.0', expected an integer of 0 or more"),
        ("\t1\t1\t1\t0", "line 8: userID is '', expected an integer of 0 or more"),
        (
            "3\t99999999999999999999\t1\t1\t0",
            "line 8: itemID is '99999999999999999999', expected an integer of 0 or more with at most 18",
        ),
        ("3\t1\t1\t1\t3", "line 8: x_label is '3', expected 0 (training), 1 (validation) or 2 (test)"),
        ("3\t1\t1\t1\t", "line 8: x_label is '', expected 0 (training), 1 (validation) or 2 (test)"),
        ("3\t4\t1\t1\t0", "line 8: itemID is '4', expected one of the 4 rows of"),
        ("0\t1\t1\t1\t0", "line 3: user 0 and item 1 are in validation, and in train by line 8, expected one split"),
        ("3\t1\t1\t1", "line 8: found 4 fields, expected 5"),
        ("3\t\ud800\t1\t1\t1", "line 8: not UTF-8 text"),
    ],
)
def test_refuses_a_row(folder, row, fragment, refused):
    text = "\n".join([HEADER, *ROWS, row]) + "\n"
    (folder / "toy.inter").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    refused(folder, f"toy.inter {fragment}")


def test_refuses_files_without_rows_or_columns(folder, refused):
    write(folder, ["0\t0"], header="userID\titemID")
    refused(folder, "toy.inter: no column 'x_label', found 'userID', 'itemID'")
    write(folder, ["0\t0\t0\t0"], header="userID\titemID\tx_label\tuserID")
    refused(folder, "toy.inter: column 'userID' stands twice")
    write(folder, [])
    refused(folder, "toy.inter has a header but no rows")
    (folder / "toy.inter").write_text("")
    refused(folder, "toy.inter is empty")
    write(folder, ["0\t0\t1\t1\t2"])
    refused(folder, "toy.inter has no row with x_label 0, expected a training split")


def test_refuses_features(folder, refused):
    np.save(folder / "text_feat.npy", np.ones((5, 2), dtype=np.float32))
    refused(folder, "text_feat.npy has 5 rows and", "image_feat.npy has 4")
    matrix = np.ones((4, 2), dtype=np.float32)
    matrix[3, 1] = np.nan
    np.save(folder / "text_feat.npy", matrix)
    refused(folder, "text_feat.npy row 4 (item 3): value 2 is nan, expected finite numbers")
    np.save(folder / "text_feat.npy", np.full((4, 2), 1e300))
    for choice in ("refuse", "mean"):
        refused(folder, "text_feat.npy: every row of the features holds NaN or infinity", invalid_features=choice)
    np.save(folder / "text_feat.npy", np.ones(4))
    refused(folder, "text_feat.npy holds float64 of shape (4,), expected a matrix")
    np.save(folder / "text_feat.npy", np.array([["a"], ["b"]]))
    refused(folder, "text_feat.npy holds <U1 of shape (2, 1), expected a matrix of numbers")
    np.save(folder / "text_feat.npy", np.array([{}, {}, {}, {}], dtype=object), allow_pickle=True)
    refused(folder, "text_feat.npy is no readable .npy file of numbers: it holds Python objects")
    sound = (folder / "image_feat.npy").read_bytes()
    (folder / "text_feat.npy").write_bytes(sound[:-8])
    refused(folder, "text_feat.npy is no readable .npy file of numbers: 88 bytes follow its header, which is of", "96")
    (folder / "text_feat.npy").write_bytes(sound + b"more")
    refused(folder, "text_feat.npy is no readable .npy file of numbers: 100 bytes follow its header, which is of", "96")
    (folder / "text_feat.npy").write_bytes(sound.replace(b"(4, 3), }         ", b"(9999999999, 3), }"))
    refused(folder, "96 bytes follow its header, which is of float64 (9999999999, 3), 239,999,999,976 bytes")
    for damage in (b"(4, 3) }", b"(4, (3, ", b"\x00\x00\x00\x00\x00\x00\x00\x00"):
        (folder / "text_feat.npy").write_bytes(sound.replace(b"(4, 3), ", damage))
        refused(folder, "text_feat.npy is no readable .npy file of numbers: ")
    for content in (b"", b"garbage", b"\x80\x04K\x01.", b"PK\x03\x04 but no archive"):
        (folder / "text_feat.npy").write_bytes(content)
        refused(folder, "text_feat.npy is no readable .npy file of numbers: it does not begin as one")
    with (folder / "text_feat.npy").open("wb") as stream:
        np.savez(stream, a=np.ones(3))
    refused(folder, "text_feat.npy is no readable .npy file of numbers: it does not begin as one")


def test_refuses_settings_that_do_not_apply(folder, tmp_path, refused):
    refused(folder, "data.k_core is 5", "brings its own split", k_core=5)
    refused(folder, "data.split is 'time'", "brings its own split", split="time")
    refused(folder, "data.modalities names", "none.npy for 'image', which is missing", modalities={"image": "none.npy"})
    refused(folder / "nowhere", "data.path is", "neither a folder nor a file")
    (tmp_path / "bare").mkdir()
    refused(tmp_path / "bare", "a folder without interactions, expected NAME.inter or interactions.csv in it")
    refused(tmp_path / "bare", "expected NAME.inter in it", format="mmrec")
    for name in ("a", "b"):
        (tmp_path / "bare" / f"{name}.inter").write_text(HEADER)
    refused(tmp_path / "bare", "has a.inter, b.inter: name one of them")


def test_the_file_named_like_the_folder_is_taken(folder):
    (folder / "other.inter").write_text(HEADER)
    assert load(folder).name == "toy"


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"ratios": (0, 1, 1)}, "data.ratios is (0, 1, 1), expected three numbers of 0 or more, the first above 0"),
        ({"ratios": (8, 1)}, "data.ratios is (8, 1)"),
        ({"ratios": (8, -1, 1)}, "data.ratios is (8, -1, 1)"),
        ({"k_core": -1}, "data.k_core is -1, expected 0 or more"),
        ({"seed": -1}, "data.seed is -1, expected 0 or more"),
        ({"split": "global"}, "data.split is 'global', expected one of random, time"),
        ({"format": "csv"}, "data.format is 'csv', expected one of auto, mmrec, recbole, plain"),
        ({"invalid_features": "drop"}, "data.invalid_features is 'drop', expected one of refuse, mean"),
    ],
)
def test_refuses_a_configuration(settings, fragment):
    with pytest.raises(ValueError, match=re.escape(fragment)):
        DataConfig(**settings)


def test_amazon_baby():
    path = Path(
        os.environ.get("CRANE_AMAZON_BABY", Path(__file__).parents[3].parent / "shared" / "data" / "amazon-baby")
    )
    if not path.is_dir():
        pytest.skip("the amazon-baby data set is not on this machine (CRANE_AMAZON_BABY)")
    data = load(path)
    summary = data.summary()
    assert (data.n_users, data.n_items) == (19_445, 7_050)
    assert [summary[split] for split in ("train", "validation", "test")] == [119_674, 20_559, 20_559]
    assert summary["interactions"] == 160_792
    assert summary["cold_items"] == 2
    assert summary["modalities"] == {"image": 128, "text": 128}
    assert data.notices == ()
    np.testing.assert_array_equal(data.user_ids, np.arange(19_445))
