"""Plain tables: ids of every kind, splits, features by id, and what is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crane.data import DataConfig, load_dataset
from crane.data.dataset import SPLITS


def write_csv(folder, *lines, name="interactions.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path, **settings):
    return load_dataset(DataConfig(path=str(path), **settings))


def pairs(data, *splits):
    """The interactions of the splits (by default all) in the data's own ids."""
    return {
        (user, item)
        for split in splits or SPLITS
        for user, item in zip(
            data.user_ids[getattr(data, split).users].tolist(),
            data.item_ids[getattr(data, split).items].tolist(),
            strict=True,
        )
    }


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["integers", "names", "mixed"])
def test_ids_survive_the_round_trip(tmp_path, suffix, kind):
    generator = np.random.default_rng(0)
    users, items = generator.integers(-5, 50, 400).tolist(), generator.integers(10**17, 10**17 + 40, 400).tolist()
    if kind == "names":
        users, items = [f"u{u}" for u in users], [f'ärt, "{i}"' for i in items]
    if kind == "mixed":
        users, items = [f"{u:03d}" for u in users], [str(i) if i % 2 else f"x{i}" for i in items]
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        quoted = [f'{u},"{str(i).replace(chr(34), chr(34) * 2)}"' for u, i in zip(users, items, strict=True)]
        write_csv(tmp_path, "user,item", *quoted, name="log.csv")
    else:
        pq.write_table(pa.table({"user": users, "item": items}), path)
    data = load(path)
    assert pairs(data) == set(zip(users, items, strict=True))
    assert sum(len(getattr(data, split)) for split in SPLITS) == len(pairs(data))
    assert data.user_ids.dtype == (np.int64 if kind == "integers" else object)
    assert data.name == "log"


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_stays_text(tmp_path, text):
    table = pa.table({"user": pa.array(["1", "2", "1"]).cast(text), "item": pa.array([7, 7, 8], pa.int32())})
    pq.write_table(table, tmp_path / "log.parquet")
    data = load(tmp_path / "log.parquet")
    assert pairs(data) == {("1", 7), ("2", 7), ("1", 8)}
    assert data.item_ids.dtype == np.int64


def test_random_split_repeats_whatever_the_order_of_the_file(tmp_path):
    lines = [f"u{u},{i}" for u in range(20) for i in range(u % 7 + 1)]
    first = load(write_csv(tmp_path, "user,item", *lines))
    again = load(write_csv(tmp_path, "user,item", *reversed(lines)))
    other = load(write_csv(tmp_path, "user,item", *lines), seed=1)
    assert first.name == tmp_path.name
    assert pairs(first, "train") == pairs(again, "train")
    assert pairs(first, "train") != pairs(other, "train")
    assert {user for user, _ in pairs(first, "train")} == {f"u{u}" for u in range(20)}


@pytest.mark.parametrize(
    "times",
    [
        ["5", "-1", "30", "7"],
        ["5.5", "-1e3", "30", "7"],
        ["2024-02-01", "2023-12-31", "2024-03-01 10:00:00", "2024-03-01 09:59:59.5"],
        ["2024-02-01T00:00:00Z", "2024-01-31T23:00:00-01:00", "2024-03-01T10:00:00+01:00", "2024-03-01T09:00:00+02:00"],
    ],
)
def test_split_by_time_takes_the_latest(tmp_path, times):
    path = write_csv(tmp_path, "item,user,timestamp", *(f"i{n},u,{time}" for n, time in enumerate(times)))
    data = load(path, split="time")
    for split, items in zip(SPLITS, (["i0", "i1"], ["i3"], ["i2"]), strict=True):
        assert pairs(data, split) == {("u", item) for item in items}


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.timestamp("s", tz="UTC"), pa.date32(), pa.int32(), pa.float64()]
)
def test_split_by_time_from_parquet(tmp_path, kind):
    days = [3, 1, 9, 5]
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    times = pa.array(days if numbers else [datetime.date(2024, 1, d) for d in days]).cast(kind)
    pq.write_table(pa.table({"user": ["u"] * 4, "item": range(4), "timestamp": times}), tmp_path / "log.parquet")
    data = load(tmp_path / "log.parquet", split="time")
    assert (pairs(data, "validation"), pairs(data, "test")) == ({("u", 3)}, {("u", 2)})


def test_repeats_are_merged_at_their_earliest_time(tmp_path):
    rows = ["u,a,9", "u,b,2", "u,c,3", "u,d,4", "u,a,1"]
    data = load(write_csv(tmp_path, "user,item,timestamp", *rows), split="time")
    assert data.notices == ("1 repeated interaction merged",)
    assert pairs(data, "train") == {("u", "a"), ("u", "b")}
    assert pairs(data, "test") == {("u", "d")}


def test_columns_can_be_named_and_files_tab_separated(tmp_path):
    path = write_csv(tmp_path, "when\twho\twhat", "1\tx\t5", name="log.tsv")
    data = load(path, user_column="who", item_column="what", timestamp_column="when", split="time")
    assert pairs(data, "train") == {("x", 5)}


def test_k_core_drops_users_and_items(tmp_path, refused):
    dense = [f"u{u},{i}" for u in range(4) for i in range(4)]
    path = write_csv(tmp_path, "user,item", *dense, "loner,0", "loner,99")
    (tmp_path / "item_ids.txt").write_text("99\n0\n1\n2\n3\n77\n")
    np.save(tmp_path / "image_feat.npy", np.arange(6.0)[:, None] * [1, 1])
    data = load(path, k_core=3)
    assert data.user_ids.tolist() == ["u0", "u1", "u2", "u3"]
    assert data.item_ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(data.features["image"][:, 0], [1, 2, 3, 4])
    assert data.notices == ("3-core: 4 of 5 users, 4 of 5 items, 16 of 18 interactions kept",)
    refused(path, "data.k_core=9 leaves no interaction of", "interactions.csv", k_core=9)


@pytest.mark.parametrize("as_text", [False, True])
def test_npy_features_follow_the_ids_beside_them(tmp_path, as_text):
    prefix = "i" if as_text else ""
    write_csv(tmp_path, "user,item", *(f"u,{prefix}{i}" for i in (30, 10, 20)))
    (tmp_path / "image_feat.ids.txt").write_text(f"{prefix}10\n{prefix}30\n{prefix}40\n")
    np.save(tmp_path / "image_feat.npy", np.array([[1, 0], [3, 0], [4, 6]]))
    data = load(tmp_path)
    assert data.item_ids.tolist() == ([f"i{i}" for i in (10, 20, 30, 40)] if as_text else [10, 20, 30, 40])
    np.testing.assert_allclose(data.features["image"], [[1, 0], [8 / 3, 2], [3, 0], [4, 6]], rtol=1e-6)
    assert data.notices == (
        "1 item with features and without interactions",
        "1 item without image features, filled with the mean of the others",
    )
    assert data.summary()["cold_items"] >= 1


@pytest.mark.parametrize("lists", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())])
def test_parquet_features_are_list_columns(tmp_path, lists):
    write_csv(tmp_path, "user,item", "u,1", "u,2", "v,2")
    table = pa.table(
        {
            "item": ["2", "1", "x"],
            "price": [1.0, 2.0, 3.0],
            "image": pa.array([[2, 2], [1, 1], None], lists),
            "text": pa.array([[5, 5], [4, 4], [3, 3]], lists),
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    data = load(tmp_path)
    assert data.item_ids.tolist() == ["1", "2", "x"]
    assert list(data.features) == ["image", "text"]
    np.testing.assert_array_equal(data.features["image"], [[1, 1], [2, 2], [1.5, 1.5]])
    np.testing.assert_array_equal(data.features["text"], [[4, 4], [5, 5], [3, 3]])
    assert list(load(tmp_path, modalities={"text": "items.parquet"}).features) == ["text"]


@pytest.mark.parametrize(
    ("lines", "fragment"),
    [
        (["user,item", "a,1", "", ",2"], " line 4: user is '', expected an id"),
        (["user,item,note", 'a,1,"x', 'y"', "c,,z"], " line 4: item is '', expected an id"),
        (["user,item", "a,1", '"b', 'c",2'], " line 3: user is 'b\\nc', expected an id without line breaks"),
        (["user,item", 'a,"1', *["b,2"] * 40, '"'], " line 2: item is '1\\nb,2\\nb,2"),
        (["user,item", "a\0,1"], " line 2: user is 'a\\x00', expected an id without line breaks and NUL bytes"),
        (["user,item,note", "a,1,x", 'b,2,"y', "c,3,z"], " line 3: a quote opens a value and none closes it"),
        (["user,item,note", 'a,1,5" disc', 'b,2,"y', "c,3,z"], " line 3: a quote opens a value and none closes it"),
        (["user,item,note", 'a,1,"x"x"', '"b",2,"a ""y"" b"', 'c,3,"z'], " line 4: a quote opens a value and none"),
        (["user,item", "a,1", "a"], " line 3: found 1 fields, expected 2"),
        (["user,item", "a,1", "a,1,2"], " line 3: found 3 fields, expected 2"),
        (["users,item", "a,1"], ": no column 'user', found 'users', 'item'"),
        (["user,item,item", "a,1,2"], ": column 'item' stands twice, expected every name once"),
        (["user,item"], " has a header but no rows"),
        ([""], " is empty, expected a header and rows"),
    ],
)
def test_refuses_a_csv_file(tmp_path, lines, fragment, refused):
    refused(write_csv(tmp_path, *lines), f"interactions.csv{fragment}")


@pytest.mark.parametrize(
    ("times", "fragment"),
    [
        (["1", "2", "soon"], "line 4: timestamp is 'soon', expected a number or an ISO 8601 date and time"),
        (["soon", "2"], "line 2: timestamp is 'soon', expected a number or an ISO 8601 date and time"),
        (["2024-01-01", "2024-01-02", "17", "18"], "line 4: timestamp is '17', expected a number or an ISO 8601"),
        (["1", ""], "line 3: timestamp is '', expected a number or an ISO 8601 date and time"),
        (["1", "nan", "2"], "line 3: timestamp is 'nan', expected a number or an ISO 8601 date and time"),
    ],
)
def test_refuses_times(tmp_path, times, fragment, refused):
    path = write_csv(tmp_path, "user,item,timestamp", *(f"u,{n},{time}" for n, time in enumerate(times)))
    refused(path, f"interactions.csv {fragment}", split="time")
    assert load(path).n_items == len(times)  # times are not read where they are not needed


@pytest.mark.parametrize(
    ("times", "end"),
    [
        (["soon", "later"], "date and time"),
        (["1", "2024-01-01"], "time, as the rows before"),
        (["2024-01-01", "2024-01-02T00:00:00Z"], ", without a time zone as the rows before"),
        (["2024-01-01T00:00:00Z", "2024-01-02"], ", with a time zone as the rows before"),
        (["2024-01-01", "2024-01-01 10:00:00.123456789", "2024-01-02T00:00:00Z"], ", without a time zone as .* before"),
        (["2300-01-01", "2024-01-01 10:00:00.123456789"], "from 1678 to 2261 where times in the column .* nanoseconds"),
    ],
)
def test_refused_times_say_what_the_rows_before_are(tmp_path, times, end):
    path = write_csv(tmp_path, "user,item,timestamp", *(f"u,{n},{time}" for n, time in enumerate(times)))
    with pytest.raises(ValueError, match=end + "$"):
        load(path, split="time")


def test_refuses_one_column_for_two_things(tmp_path, refused):
    path = write_csv(tmp_path, "user,item", "u,1", "u,2")
    refused(
        path, "interactions.csv: column 'item' is wanted for two things, expected a column each", user_column="item"
    )


def test_refuses_parquet_columns(tmp_path, refused):
    path = tmp_path / "log.parquet"

    def table(**columns):
        pq.write_table(pa.table(columns), path)

    table(user=["a", None], item=[1, 2])
    refused(path, "log.parquet row 2: user is None, expected an id")
    table(user=["a", "b"], item=[1.0, 2.0])
    refused(path, "log.parquet: column 'item' is double, expected ids that are integers or text")
    table(user=[["a"], ["b"]], item=[1, 2])
    refused(path, "log.parquet: column 'user' is list<", "expected ids that are integers or text")
    table(user=["a", "b"], item=pa.array([1, 2**63], pa.uint64()))
    refused(path, "log.parquet row 2: item is 9223372036854775808, expected an id of at most 9223372036854775807")
    table(user=["a"], item=[1])
    refused(path, "log.parquet: no column 'timestamp', found 'user', 'item'", split="time")
    table(user=["a"], item=[1], timestamp=[True])
    refused(path, "log.parquet: column 'timestamp' is bool, expected numbers, dates or times", split="time")
    table(user=["a", "b"], item=[1, 2], timestamp=[1.0, np.inf])
    refused(path, "log.parquet row 2: timestamp is inf, expected a number", split="time")
    table(user=["a", "b"], item=[1, 2], timestamp=[1, None])
    refused(path, "log.parquet row 2: timestamp is None, expected a number", split="time")
    table(user=pa.array([], pa.string()), item=pa.array([], pa.string()))
    refused(path, "log.parquet has a header but no rows")
    path.write_bytes(b"PAR1 but not really")
    refused(path, "log.parquet is no readable Parquet file")


def test_refuses_ids_of_features(tmp_path, refused):
    path = write_csv(tmp_path, "user,item", "u,1", "u,2")
    np.save(tmp_path / "image_feat.npy", np.ones((2, 3), dtype=np.float32))
    refused(path, "image_feat.npy says nothing of its items, expected their ids, one a line, in", "item_ids.txt")
    ids = tmp_path / "item_ids.txt"
    ids.write_text("1\n2\n3\n")
    refused(path, "image_feat.npy has 2 rows, expected 3, one for each id")
    ids.write_text("1\n1\n")
    refused(path, "item_ids.txt line 2: item 1 stands twice, expected every id once")
    ids.write_text("1\n\n2\n")
    refused(path, "item_ids.txt line 2: empty, expected an item id")
    ids.write_bytes(b"1\n2\0\n")
    refused(path, "item_ids.txt line 2: a NUL byte, expected an item id")
    ids.write_bytes(b"1\n\xff\n")
    refused(path, "item_ids.txt is not UTF-8 text, expected one item id a line")
    ids.write_text("01\n02\n")
    refused(path, "image_feat.npy has features of items such as 01, none of which is in", "which has items such as 1")
    ids.write_text("2\n1\n")
    np.save(tmp_path / "image_feat.npy", np.array([[1.0, 2.0], [3.0, np.nan]]))
    refused(path, "image_feat.npy row 2 (item 1): value 2 is nan, expected finite numbers")
    data = load(path, invalid_features="mean")
    np.testing.assert_array_equal(data.features["image"], [[1, 2], [1, 2]])


def test_refuses_features_in_parquet(tmp_path, refused):
    path = write_csv(tmp_path, "user,item", "u,1", "u,2")

    def table(**columns):
        pq.write_table(pa.table(columns), tmp_path / "items.parquet")

    table(item=[1, 2], image=[[1.0, 2.0], [1.0]])
    refused(path, "items.parquet row 2: image has 1 numbers, expected 2 as in rows before")
    table(item=[1, 2], image=[[1.0, 2.0], [1.0, None]])
    refused(path, "items.parquet row 2 (item 2): value 2 of image is null, expected finite numbers")
    table(item=[1, 1], image=[[1.0, 2.0], [1.0, 3.0]])
    refused(path, "items.parquet row 2: item is 1, expected every id once")
    table(item=[1, 2], image=[["a"], ["b"]])
    refused(path, "items.parquet row 1: image holds 'a', expected numbers")
    table(item=[1, 2], image=[[[1.0]], [[2.0]]])
    refused(path, "items.parquet: column 'image' is list<", "expected lists of numbers")
    table(item=[1, 2], image=pa.array([None, None], pa.list_(pa.float32())))
    refused(path, "items.parquet: column 'image' holds no features")
    table(item=[1, 2], image=[1.0, 2.0])
    assert load(path).features == {}
    refused(path, "items.parquet: column 'image' is double, expected lists", modalities={"image": "items.parquet"})
    table(image=[[1.0], [2.0]])
    refused(path, "items.parquet: no column 'item', found 'image'")


def test_large_logs_are_read_without_python_loops(tmp_path):
    """A per-row loop would call into Python at least once a row."""
    import sys

    n = 50_000
    generator = np.random.default_rng(0)
    pairs_table = pa.table({"user": generator.integers(0, 5000, n), "item": generator.integers(0, 2000, n).astype(str)})
    pq.write_table(pairs_table, tmp_path / "log.parquet")
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        data = load(tmp_path / "log.parquet", k_core=2)
    finally:
        sys.setprofile(None)
    assert data.n_users > 4000
    assert calls < n / 5


def test_spaces_around_the_values_of_a_csv_file_are_no_part_of_them(tmp_path):
    data = load(write_csv(tmp_path, "user, item , note", "u, 1, x", "u ,2, y", '" v ",3,', "w,3 , z z"))
    assert data.user_ids.tolist() == ["u", "v", "w"]
    assert data.item_ids.tolist() == [1, 2, 3]


def test_spaces_around_ids_are_no_part_of_them_in_any_text(tmp_path):
    (tmp_path / "item_ids.txt").write_text("i1 \n i 2\n")
    np.save(tmp_path / "image_feat.npy", np.array([[1.0], [2.0]], dtype=np.float32))
    for name, lines in (("a.csv", ["user,item", "u, i1", "u,i 2 "]), ("b.tsv", ["user\titem", "u \t i1", "u\ti 2"])):
        data = load(write_csv(tmp_path, *lines, name=name))
        assert data.user_ids.tolist() == ["u"]
        assert data.item_ids.tolist() == ["i 2", "i1"]
        assert data.features["image"].tolist() == [[2.0], [1.0]]


TITLE = '"Good\nsize, colour, ""fine"" shoe"'


def test_line_breaks_in_a_large_file_are_no_ends_of_rows(tmp_path, refused):
    """The file is read in blocks of 1 MB; the longest value here has 3 MB."""
    rows = [f"u{n % 7000},i{n % 907},{TITLE}" for n in range(40_000)]
    rows.insert(30_000, 'v,w,"' + "x\na,b,c\n" * 400_000 + '"')
    path = write_csv(tmp_path, "user,item,title", *rows)
    assert path.stat().st_size > 4 * 2**20
    assert pairs(load(path)) == {("v", "w"), *((f"u{n % 7000}", f"i{n % 907}") for n in range(40_000))}
    write_csv(tmp_path, "user,item,title", *rows, '"u\n1",i,x')
    line = 2 + 2 * 40_000 + 800_001
    refused(path, f"line {line}: user is 'u\\n1', expected an id without line breaks")
    write_csv(tmp_path, "user,item,title", *rows, "u,i")
    refused(path, f"line {line}: found 2 fields, expected 3")


def test_times_may_have_nanoseconds(tmp_path):
    for zone in ("", "Z"):
        times = [f"2020-01-01T10:00:00{fraction}{zone}" for fraction in (".123456789", ".123456781", ".123456785", "")]
        path = write_csv(tmp_path, "user,item,timestamp", *(f"u,{n},{time}" for n, time in enumerate(times)))
        data = load(path, split="time", ratios=(2, 1, 1))
        assert pairs(data, "test") == {("u", 0)}
        assert pairs(data, "validation") == {("u", 2)}


def test_features_that_are_all_invalid_or_empty_are_refused(tmp_path, refused):
    path = write_csv(tmp_path, "user,item", "u,1", "u,2", "u,3")
    columns = {"item": [1, 2, 3], "image": [[np.nan, 1.0], [1.0, np.nan], None]}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    refused(path, "items.parquet: every row of the features holds NaN or infinity", invalid_features="mean")
    columns = {"item": [1, 2, 9], "image": [None, None, [1.0, 2.0]]}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    refused(path, "items.parquet has features of items such as 9, none of which is in")


def test_a_quote_within_a_value_is_a_character(tmp_path):
    data = load(write_csv(tmp_path, "user,item,note", 'u,5" pipe,x', 'v,2,"a""b"'))
    assert pairs(data) == {("u", '5" pipe'), ("v", "2")}


def test_suffixes_in_capitals_are_the_same(tmp_path):
    write_csv(tmp_path, "user,item", "u,1", "v,2", name="interactions.CSV")
    assert load(tmp_path).user_ids.tolist() == ["u", "v"]
