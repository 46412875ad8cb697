"""Feature files: which there are, what they hold, and how their rows meet the items."""

from __future__ import annotations

import math
import tokenize
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crane.data.config import DataConfig, InvalidFeatures
from crane.data.table import Column, Source, to_identifiers
from crane.files import read_lines

SUFFIX = "_feat.npy"
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_FINITE = "expected finite numbers (data.invalid_features=mean replaces such rows)"


@dataclass(frozen=True)
class Features:
    """One modality as read.

    Attributes:
        path: the file.
        matrix: (rows, d) float32, finite where ``present``.
        present: (rows,) bool, false for rows without (valid) features.
        ids: (rows,) item ids, int64 or an object array of str.
    """

    path: Path
    matrix: np.ndarray
    present: np.ndarray
    ids: np.ndarray

    def filled(self, items: np.ndarray, n_items: int) -> tuple[np.ndarray, int]:
        """The matrix with one row an item; items without features get the mean of the others.

        Args:
            items: (rows,) int64, the item index of each row, -1 for rows to leave out.
            n_items: number of items.

        Returns:
            (n_items, d) float32, ``matrix`` itself where nothing is moved or filled, and how many rows were filled.
        """
        used = np.flatnonzero(self.present & (items >= 0))
        row = np.full(n_items, -1)
        row[items[used]] = used
        if np.array_equal(row, np.arange(len(self.matrix))):
            return self.matrix, 0
        missing = row < 0
        result: np.ndarray = self.matrix[row]
        if missing.any():
            known = self.matrix if len(used) == len(self.matrix) else self.matrix[used]
            result[missing] = known.mean(axis=0, dtype=np.float64)
        return result, int(missing.sum())


def modality_files(config: DataConfig, folder: Path) -> dict[str, Path]:
    """Modality to file: the configured mapping, or every ``NAME_feat.npy`` in ``folder`` by name.

    Raises:
        ValueError: a configured file is missing.
    """
    if config.modalities == "auto":
        return {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob("*" + SUFFIX))}
    files = {name: folder / file for name, file in config.modalities.items()}
    for name, path in files.items():
        if not path.is_file():
            raise ValueError(f"data.modalities names {path} for {name!r}, which is missing")
    return files


def read_npy(path: Path, invalid: InvalidFeatures, ids: np.ndarray | None = None) -> Features:
    """Read one modality from a ``.npy`` file of (rows, d) numbers, and check it.

    ``ids`` are the items of the rows; without them, the row number, from 0, is the item.

    Raises:
        ValueError: the file is unreadable, holds Python objects or no matrix of numbers, is shorter or longer than
            its header says, has another number of rows than there are ``ids``, or holds NaN or infinity (unless
            ``invalid`` is ``"mean"``).
    """
    try:
        _check_npy(path)
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        fault = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise ValueError(f"{path} is no readable .npy file of numbers: {fault}") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.size:
        raise ValueError(
            f"{path} holds {matrix.dtype} of shape {matrix.shape}, expected a matrix of numbers with one row an item"
        )
    if ids is not None and len(ids) != len(matrix):
        raise ValueError(f"{path} has {len(matrix)} rows, expected {len(ids)}, one for each id")
    rows = np.arange(len(matrix))
    return _checked(Source(path, None), matrix, rows >= 0, invalid, rows if ids is None else ids)


def _check_npy(path: Path) -> None:
    """Compare the file with its header, before numpy asks for as much memory as the header says.

    Raises:
        ValueError: the file does not begin as a ``.npy`` file, holds Python objects, or has another size.
    """
    with path.open("rb") as stream:
        if stream.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
            raise ValueError("it does not begin as one")
        stream.seek(0)
        read_header = _NPY_HEADERS.get(np.lib.format.read_magic(stream))
        if read_header is None:
            raise ValueError("its format is newer than that of matrices of numbers")
        try:
            shape, _, dtype = read_header(stream)
        except (tokenize.TokenError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError("its header is damaged") from error
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        expected = math.prod(shape) * dtype.itemsize
        found = path.stat().st_size - stream.tell()
    if found != expected:
        raise ValueError(f"{found:,} bytes follow its header, which is of {dtype} {shape}, {expected:,} bytes")


def _checked(
    source: Source, matrix: np.ndarray, present: np.ndarray, invalid: InvalidFeatures, ids: np.ndarray
) -> Features:
    """Convert to float32 and look for NaN and infinity in the rows that are ``present``; the others hold zeros.

    Raises:
        ValueError: a row is invalid and ``invalid`` is ``"refuse"``, or no row is valid.
    """
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    finite = np.isfinite(matrix).all(axis=1)
    if not (finite & present).any():
        raise ValueError(
            f"{source.path}: every row of the features holds NaN or infinity in float32, expected finite numbers"
        )
    if not finite.all() and invalid == "refuse":
        row = int(np.argmin(finite))
        column = int(np.argmin(np.isfinite(matrix[row])))
        raise ValueError(
            f"{source.place(row)} (item {ids[row]}): value {column + 1} is {matrix[row, column]}, {_FINITE}"
        )
    return Features(source.path, matrix, finite & present, ids)


def read_list_column(column: Column, ids: np.ndarray, invalid: InvalidFeatures) -> Features:
    """Read one modality from a column whose every value is a list of numbers (Parquet), or numbers in text (RecBole).

    Null and empty values mean that the item has no features.

    Raises:
        ValueError: names the row whose list has another length or holds something else, or is not finite.
    """
    values = column.values
    kind = values.type
    if not (pa.types.is_string(kind) or is_list(kind)):
        raise ValueError(f"{column.source.path}: column {column.name!r} is {kind}, expected lists of numbers")
    if pa.types.is_string(values.type):
        values = pc.split_pattern_regex(pc.utf8_trim_whitespace(values), r"[ \t]+")
        empty = pc.equal(pc.utf8_trim_whitespace(column.values), "")
        values = pc.if_else(empty, pa.scalar(None, values.type), values)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(values), 0))
    present = lengths > 0
    if not present.any():
        raise ValueError(f"{column.source.path}: column {column.name!r} holds no features")
    width = int(lengths[present][0])
    if not (lengths[present] == width).all():
        row = int(np.flatnonzero(present & (lengths != width))[0])
        raise ValueError(
            f"{column.source.place(row)}: {column.name} has {lengths[row]} numbers, expected {width} as in rows before"
        )
    matrix = np.zeros((len(lengths), width), dtype=np.float32)
    flat = pc.list_flatten(values)
    null = pc.index(pc.is_null(flat), True).as_py()
    if null >= 0 and invalid == "refuse":
        row = int(np.flatnonzero(present)[null // width])
        raise ValueError(
            f"{column.source.place(row)} (item {ids[row]}): "
            f"value {null % width + 1} of {column.name} is null, {_FINITE}"
        )
    matrix[present] = _numbers(column, flat, np.flatnonzero(present), width).reshape(-1, width)
    return _checked(column.source, matrix, present, invalid, ids)


def is_list(kind: pa.DataType) -> bool:
    """Whether the values of an Arrow type are lists, whatever the width of their offsets."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _numbers(column: Column, flat: pa.Array, rows: np.ndarray, width: int) -> np.ndarray:
    """The numbers of all rows with features, one after the other, as float64 (null is NaN)."""
    try:
        return np.asarray(flat.cast(pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowException as error:
        if not pa.types.is_string(flat.type):
            raise ValueError(
                f"{column.source.path}: column {column.name!r} is {column.values.type}, expected lists of numbers"
            ) from error
        for position, text in enumerate(flat.to_pylist()):
            try:
                pa.scalar(text).cast(pa.float64())
            except pa.ArrowException:
                place = column.source.place(int(rows[position // width]))
                raise ValueError(f"{place}: {column.name} holds {text!r}, expected numbers") from error
        raise


def read_ids(path: Path) -> np.ndarray:
    """Read item ids from a text file, one a line, no header: line n is row n of the features.

    Spaces around an id are no part of it, as in tables of text.

    Raises:
        ValueError: the file is not UTF-8, or a line is empty, holds a NUL byte or repeats an id.
    """
    try:
        lines = [line.strip() for line in read_lines(path)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, expected one item id a line") from error
    for number, line in enumerate(lines, start=1):
        if not line or "\0" in line:
            found = "a NUL byte" if line else "empty"
            raise ValueError(f"{path} line {number}: {found}, expected an item id")
    ids = to_identifiers(lines)
    row = repeated_row(ids)
    if row is not None:
        raise ValueError(f"{path} line {row + 1}: item {ids[row]} stands twice, expected every id once")
    return ids


def distinct_ids(column: Column) -> np.ndarray:
    """The item ids of a table with one row an item.

    Raises:
        ValueError: names the first row without an id or with one that an earlier row has.
    """
    ids, codes = column.identifiers()
    row = repeated_row(codes)
    if row is not None:
        raise column.refusal(row, "every id once")
    by_row: np.ndarray = ids[codes]
    return by_row


def repeated_row(values: np.ndarray) -> int | None:
    """The first index whose value an earlier index has."""
    _, first = np.unique(values, return_index=True)
    repeated = np.ones(len(values), dtype=bool)
    repeated[first] = False
    return int(np.argmax(repeated)) if repeated.any() else None
