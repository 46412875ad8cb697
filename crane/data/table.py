"""Columns of text tables and Parquet files, read whole, with errors that name the file and the row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

# Integers as people write them: anything else ("007", "1.0", "+1") is a name and is kept as text.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class Source:
    """A table file: where it is and how it is written. ``delimiter`` is ``None`` for Parquet."""

    path: Path
    delimiter: str | None
    quoted: bool = False

    @classmethod
    def of(cls, path: Path) -> Source:
        """The source at ``path``, told by its suffix: Parquet, quoted CSV, or tab-separated as it stands."""
        suffix = path.suffix.lower()
        if suffix in PARQUET_SUFFIXES:
            return cls(path, None)
        return cls(path, ",", quoted=True) if suffix == ".csv" else cls(path, "\t")

    def place(self, row: int) -> str:
        """Name row ``row`` (0-based, header and blank lines not counted): ``FILE line N`` or ``FILE row N``."""
        if self.delimiter is None:
            return f"{self.path} row {row + 1}"
        line, _ = next(islice(self._records(), row + 1, None))
        return f"{self.path} line {line}"

    def header(self) -> list[str]:
        """The names of the columns.

        Raises:
            ValueError: the file cannot be read, is empty, or names a column twice.
        """
        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing, expected a file")
        if self.delimiter is None:
            names = list(_parquet(self).schema_arrow.names)
        else:
            names = next((fields for _, fields in self._records()), [])
        if not names:
            raise ValueError(f"{self.path} is empty, expected a header and rows")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{self.path} line 1: column {twice!r} stands twice, expected every name once")
        return names

    def read(self, names: list[str]) -> dict[str, Column]:
        """Read the named columns; text files give text, Parquet its own types.

        Raises:
            ValueError: a column is missing, a line has another number of fields than the header or is not UTF-8,
                or there are no rows.
        """
        header = self.header()
        for name in names:
            if name not in header:
                raise ValueError(f"{self.path} line 1: no column {name!r}, found {', '.join(map(repr, header))}")
        table = self._read_parquet(names) if self.delimiter is None else self._read_text(names, len(header))
        if table.num_rows == 0:
            raise ValueError(f"{self.path} has a header but no rows")
        return {name: Column(self, name, _contiguous(table.column(name))) for name in names}

    def _read_parquet(self, names: list[str]) -> pa.Table:
        try:
            return _parquet(self).read(columns=names)
        except pa.ArrowException as error:
            raise ValueError(f"{self.path} is no readable Parquet file: {_first_line(error)}") from error

    def _read_text(self, names: list[str], width: int) -> pa.Table:
        try:
            return pa_csv.read_csv(
                self.path,
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.delimiter, quote_char='"' if self.quoted else False, ignore_empty_lines=True
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=names
                ),
            )
        except pa.ArrowInvalid as error:
            for line, fields in self._records():
                if len(fields) != width:
                    raise ValueError(
                        f"{self.path} line {line}: found {len(fields)} fields, expected {width}"
                    ) from error
            raise ValueError(f"{self.path} cannot be read: {_first_line(error)}") from error

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, fields) of every line that is not blank, slowly: for the header and for errors."""
        with self.path.open(encoding="utf-8-sig", errors="strict", newline="") as stream:
            delimiter = str(self.delimiter)
            quoted = self.quoted
            reader = csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
            try:
                for fields in reader:
                    if fields:
                        yield reader.line_num, fields
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path} line {_undecodable_line(self.path)}: not UTF-8 text") from error


@dataclass(frozen=True)
class Column:
    """One column: ``values`` is text (from text files) or what the Parquet file holds."""

    source: Source
    name: str
    values: pa.Array

    def refusal(self, row: int, expected: str) -> ValueError:
        """The error for what stands in row ``row`` (0-based)."""
        found = self.values[row].as_py()
        return ValueError(f"{self.source.place(row)}: {self.name} is {found!r}, expected {expected}")

    def integers(self, expected: str = "an integer") -> np.ndarray:
        """As int64.

        Raises:
            ValueError: names the first row that is no integer.
        """
        self.refuse_nulls(expected)
        if pa.types.is_string(self.values.type):
            self._refuse_first(pc.invert(pc.match_substring_regex(self.values, r"^-?[0-9]{1,18}$")), expected)
        elif not pa.types.is_integer(self.values.type):
            raise ValueError(f"{self.source.path}: column {self.name!r} is {self.values.type}, expected integers")
        return np.asarray(self._cast(pa.int64()))

    def times(self) -> np.ndarray:
        """As int64 or float64 that orders as the times do: numbers, or ISO 8601 dates.

        Raises:
            ValueError: names the first row that is neither, or says that the column mixes them.
        """
        expected = "a number or an ISO 8601 date and time"
        self.refuse_nulls(expected)
        kinds = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
        for kind in kinds if pa.types.is_string(self.values.type) else kinds[:2]:
            try:
                values = np.asarray(self._cast(kind).cast(pa.int64() if pa.types.is_timestamp(kind) else kind))
            except pa.ArrowException:
                continue
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                raise self.refusal(int(np.flatnonzero(~np.isfinite(values))[0]), expected)
            return values
        raise self.refusal(self._first_odd_time(), f"{expected}, of one kind in the whole column")

    def _first_odd_time(self) -> int:
        """The first row that cannot be read as the first row's kind."""
        for kind in (pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
            good, bad = 0, len(self.values)
            while bad - good > 1:
                middle = (good + bad) // 2
                try:
                    self.values[:middle].cast(kind)
                    good = middle
                except pa.ArrowException:
                    bad = middle
            if good:
                return good
        return 0

    def identifiers(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids, sorted, and for every row its index among them.

        Text that is an integer throughout the column becomes int64; a column that mixes integers and names stays text.

        Returns:
            ids (n,), int64 or an object array of str, ascending; codes (rows,), int64.

        Raises:
            ValueError: names the first row without an id, or the column's type when it is neither integer nor text.
        """
        self.refuse_nulls("an id")
        encoded = self.values
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        labels, codes = encoded.dictionary, np.asarray(encoded.indices).astype(np.int64)
        if not (pa.types.is_integer(labels.type) or _is_text(labels.type)):
            raise ValueError(
                f"{self.source.path}: column {self.name!r} is {labels.type}, expected ids that are integers or text"
            )
        if _is_text(labels.type):
            empty = pc.index(labels, pa.scalar("", labels.type)).as_py()
            if empty >= 0 and (codes == empty).any():
                raise self.refusal(int(np.argmax(codes == empty)), "an id")
        ids, position = np.unique(to_identifiers(labels), return_inverse=True)
        used, codes = np.unique(position[codes], return_inverse=True)  # Parquet dictionaries may hold unused labels
        return ids[used], codes.astype(np.int64)

    def refuse_nulls(self, expected: str) -> None:
        """Raise ValueError that names the first row without a value, if any."""
        if self.values.null_count:
            self._refuse_first(pc.is_null(self.values), expected)

    def _refuse_first(self, wrong: pa.Array, expected: str) -> None:
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            raise self.refusal(row, expected)

    def _cast(self, kind: pa.DataType) -> pa.Array:
        values = self.values
        if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("us", tz=getattr(values.type, "tz", None)), safe=False).cast(pa.int64())
        return values.cast(kind)


def to_identifiers(labels: pa.Array | list[str]) -> np.ndarray:
    """Ids as int64 when all are integers (or text of integers), as an object array of str otherwise."""
    array = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.string())
    if pa.types.is_integer(array.type):
        return np.asarray(array.cast(pa.int64()))
    texts = array.cast(pa.string())
    if pc.all(pc.match_substring_regex(texts, _INTEGER), min_count=0).as_py():
        return np.asarray(texts.cast(pa.int64()))
    return np.asarray(texts.to_numpy(zero_copy_only=False), dtype=object)


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    combined = column.unify_dictionaries().combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parquet(source: Source) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source.path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source.path} is no readable Parquet file: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _undecodable_line(path: Path) -> int:
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", path.read_bytes()), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return number
    return 0
