"""Columns of tables that are no text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crane.data.table import Column, Source


def column(folder: Path, values: pa.Array) -> Column:
    pq.write_table(pa.table({"id": values}), folder / "t.parquet")
    return Source.of(folder / "t.parquet").read(["id"])["id"]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint64(), pa.string()], ids=str)
def test_naturals_of_every_kind(tmp_path: Path, kind: pa.DataType) -> None:
    found = column(tmp_path, pa.array([3, 0, 99]).cast(kind)).naturals()
    assert found.dtype == np.int64
    assert found.tolist() == [3, 0, 99]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1, -2]), "row 2: id is -2, expected an integer of 0 or more with at most 18 digits"),
        (pa.array([1, None], pa.int32()), "row 2: id is None, expected an integer of 0 or more"),
        (pa.array([2**64 - 1], pa.uint64()), f"row 1: id is {2**64 - 1}, expected an integer of 0 or more"),
        (pa.array([1.0]), "column 'id' is double, expected integers or text"),
    ],
    ids=["negative", "null", "large", "float"],
)
def test_what_is_no_natural_is_refused(tmp_path: Path, values: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        column(tmp_path, values).naturals()
