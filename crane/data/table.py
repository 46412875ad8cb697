"""Columns of text tables and Parquet files, read whole, with errors that name the file and the row."""

from __future__ import annotations

import csv
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
_SHOWN = 80  # characters of a refused value
_BLOCK = 1 << 20  # bytes that are parsed at once; a row must not be longer
_LARGEST_BLOCK = 2**31 - 1
# Where a value opens with a quote, as Arrow has it (elsewhere a quote is a character), and what closes it.
_OPENING = re.compile(rb'(?:\A(?:\xef\xbb\xbf)?|[,\r\n])"')
_QUOTED = re.compile(rb'(?:[^"]++|"")*+"')
_LINE_END = re.compile(rb"\r\n|\r|\n")
PARQUET_SUFFIXES = (".parquet", ".pq")
# What text may be read as where times are wanted, in this order: microseconds reach further than nanoseconds.
_TIMES = (pa.float64(), *(pa.timestamp(unit, tz=zone) for zone in (None, "UTC") for unit in ("us", "ns")))


@dataclass(frozen=True)
class Source:
    """A table file: where it is and how it is written. ``delimiter`` is ``None`` for Parquet."""

    path: Path
    delimiter: str | None
    quoted: bool = False

    @classmethod
    def of(cls, path: Path) -> Source:
        """The source at ``path``, told by its suffix: Parquet, CSV with quotes, or tab-separated without."""
        suffix = path.suffix.lower()
        if suffix in PARQUET_SUFFIXES:
            return cls(path, None)
        return cls(path, ",", quoted=True) if suffix == ".csv" else cls(path, "\t")

    def place(self, row: int) -> str:
        """Name row ``row`` (0-based): ``FILE line N`` in text, ``FILE row N`` otherwise; both count from 1."""
        return f"{self.path} row {row + 1}" if self.delimiter is None else f"{self.path} line {self.line(row)}"

    def line(self, row: int) -> int:
        """The line of a text file, from 1, that holds row ``row`` (0-based, header and blank lines not counted)."""
        return next(islice(self._records(), row + 1, None))[0]

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
            names = [name.strip() for name in self._first_record()]
        if not names:
            raise ValueError(f"{self.path} is empty, expected a header and rows")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{self.path}: column {twice!r} stands twice, expected every name once")
        return names

    def read(self, names: list[str]) -> dict[str, Column]:
        """Read the named columns; text files give text without the spaces around it, Parquet its own types.

        Raises:
            ValueError: a column is missing or wanted twice, a line has another number of fields than the header
                or is not UTF-8, or there are no rows.
        """
        header = self.header()
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"{self.path}: column {twice!r} is wanted for two things, expected a column each for users and items, "
                "and for labels, times and features where there are any"
            )
        for name in names:
            if name not in header:
                raise ValueError(f"{self.path}: no column {name!r}, found {', '.join(map(repr, header))}")
        table = self._read_parquet(names) if self.delimiter is None else self._read_text(names, header)
        if table.num_rows == 0:
            raise ValueError(f"{self.path} has a header but no rows")
        return {name: Column(self, name, _contiguous(table.column(name))) for name in names}

    def _read_parquet(self, names: list[str]) -> pa.Table:
        try:
            return _parquet(self).read(columns=names)
        except pa.ArrowException as error:
            raise ValueError(f"{self.path} is no readable Parquet file: {_first_line(error)}") from error

    def _read_text(self, names: list[str], header: list[str]) -> pa.Table:
        written = dict(zip(header, self._first_record(), strict=True))
        columns = [written[name] for name in names]
        try:
            try:
                table = self._parse(columns, _BLOCK)
            except pa.ArrowInvalid:  # perhaps for a row longer than a block
                table = self._parse(columns, min(self.path.stat().st_size + 1, _LARGEST_BLOCK))
        except pa.ArrowInvalid as error:
            for line, fields in self._records():
                if len(fields) != len(header):
                    raise ValueError(
                        f"{self.path} line {line}: found {len(fields)} fields, expected {len(header)}"
                    ) from error
            raise ValueError(f"{self.path} cannot be read: {_first_line(error)}") from error
        if self.quoted and (opened := self._open_quote()) is not None:
            raise ValueError(f"{self.path} line {opened}: a quote opens a value and none closes it")
        trimmed = (pc.utf8_trim_whitespace(column) for column in table.columns)
        return pa.table(dict(zip(names, trimmed, strict=True)))

    def _parse(self, columns: list[str], block_size: int) -> pa.Table:
        """The columns of a text file, by the names that stand in it."""
        return pa_csv.read_csv(
            self.path,
            read_options=pa_csv.ReadOptions(block_size=block_size),
            parse_options=pa_csv.ParseOptions(
                delimiter=self.delimiter,
                quote_char='"' if self.quoted else False,
                newlines_in_values=self.quoted,
                ignore_empty_lines=True,
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), include_columns=columns
            ),
        )

    def _open_quote(self) -> int | None:
        """The line of the quote that opens a value and is never closed: all that follows would be lost in it."""
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = 0
            while (opened := _OPENING.search(content, end)) is not None:
                quoted = _QUOTED.match(content, opened.end())
                if quoted is None:
                    return len(_LINE_END.findall(content[: opened.end()])) + 1
                end = quoted.end()
        return None

    def _first_record(self) -> list[str]:
        return next((fields for _, fields in self._records()), [])

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, fields) of every record that is not blank, slowly: for the header and for errors."""
        newline = "" if self.quoted else None
        with _long_values(), self.path.open(encoding="utf-8-sig", newline=newline) as stream:
            try:
                if self.quoted:
                    reader, line = csv.reader(stream), 1  # a record may go over several lines
                    for fields in reader:
                        if fields:
                            yield line, fields
                        line = reader.line_num + 1
                else:
                    lines = ((number, line.rstrip("\n")) for number, line in enumerate(stream, start=1))
                    yield from ((number, line.split("\t")) for number, line in lines if line)
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path} line {_undecodable_line(self.path)}: not UTF-8 text") from error


@contextmanager
def _long_values() -> Iterator[None]:
    """Within the block csv reads values beyond 131,072 characters, its own limit, which would hide what is wrong."""
    before = csv.field_size_limit(_LARGEST_BLOCK)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@dataclass(frozen=True)
class Column:
    """One column: ``values`` is text (from text files) or what the Parquet file holds."""

    source: Source
    name: str
    values: pa.Array

    def refusal(self, row: int, expected: str) -> ValueError:
        """The error for what stands in row ``row`` (0-based)."""
        found = repr(self.values[row].as_py())
        shown = found if len(found) <= _SHOWN else found[: _SHOWN - 3] + "..."
        return ValueError(f"{self.source.place(row)}: {self.name} is {shown}, expected {expected}")

    def naturals(self, expected: str = "an integer of 0 or more with at most 18 digits") -> np.ndarray:
        """Text or integers as int64.

        Raises:
            ValueError: names the first row that is no integer of 0 or more, or says that the column holds others.
        """
        kind = self.values.type
        if pa.types.is_integer(kind):
            values = self.values.cast(pa.int64(), safe=False)  # what is above becomes negative
            wrong = pc.or_(pc.less(values, 0), pc.greater_equal(values, 10**18))
            self._refuse_first(pc.fill_null(wrong, True), expected)
            return np.asarray(values)
        if not pa.types.is_string(kind):
            raise ValueError(f"{self.source.path}: column {self.name!r} is {kind}, expected integers or text")
        self._refuse_first(pc.invert(pc.match_substring_regex(self.values, r"^[0-9]{1,18}$")), expected)
        return np.asarray(self.values.cast(pa.int64()))

    def times(self) -> np.ndarray:
        """As int64 or float64 that orders as the times do: numbers, or ISO 8601 dates.

        Raises:
            ValueError: names the first row that is neither, or says that the column mixes them.
        """
        expected = "a number or an ISO 8601 date and time"
        self._refuse_first(pc.is_null(self.values), expected)
        times = self._timeline()
        if pa.types.is_timestamp(times.type):
            times = times.cast(pa.int64())
        values = np.asarray(times)
        self._refuse_first(pa.array(~np.isfinite(values)), expected)
        return values

    def _timeline(self) -> pa.Array:
        """The values as integers, floats or timestamps, whichever fits first."""
        kind = self.values.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind):
            return self.values
        if pa.types.is_date(kind):
            return self.values.cast(pa.timestamp("ms"))
        if not pa.types.is_string(kind):
            raise ValueError(f"{self.source.path}: column {self.name!r} is {kind}, expected numbers, dates or times")
        for target in (pa.int64(), *_TIMES):
            if (times := _cast(self.values, target)) is not None:
                return times
        row, before = self._first_odd_time()
        expected = "a number or an ISO 8601 date and time"
        if before is not None and pa.types.is_timestamp(before):
            kinds = [kind for kind in _TIMES if pa.types.is_timestamp(kind) and kind.tz == before.tz]
            if any(_cast(self.values[row : row + 1], kind) is not None for kind in kinds):
                expected += ", from 1678 to 2261 where times in the column have nanoseconds"
            else:
                expected += f", with{'out' if before.tz is None else ''} a time zone as the rows before"
        elif before is not None:
            expected += ", as the rows before"
        raise self.refusal(row, expected)

    def _first_odd_time(self) -> tuple[int, pa.DataType | None]:
        """The first row that cannot be read as the rows before it, and as what those can (None: it is the first)."""
        most, what = 0, None
        for kind in _TIMES:
            good, bad = 0, len(self.values)
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (good, middle) if _cast(self.values[:middle], kind) is None else (middle, bad)
            if good > most:
                most, what = good, kind
        return most, what

    def identifiers(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids, sorted, and for every row its index among them.

        Ids of a text file that are integers throughout the column become int64; mixed with names, all stay text.

        Returns:
            ids (n,), int64 or an object array of str, ascending; codes (rows,), int64.

        Raises:
            ValueError: names the first row without an id, or the column's type when it is neither integer nor text.
        """
        self._refuse_first(pc.is_null(self.values), "an id")
        kind = self.values.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
            raise ValueError(
                f"{self.source.path}: column {self.name!r} is {kind}, expected ids that are integers or text"
            )
        encoded = self.values.dictionary_encode()
        labels, codes = encoded.dictionary, np.asarray(encoded.indices).astype(np.int64)
        if pa.types.is_uint64(kind):
            largest = pa.scalar(2**63 - 1, pa.uint64())
            self._refuse_first(pc.greater(self.values, largest), f"an id of at most {largest}")
        if pa.types.is_string(kind):
            empty = pc.index(labels, "").as_py()
            self._refuse_first(pa.array(codes == empty), "an id")
            broken = np.asarray(pc.match_substring_regex(labels, r"[\x00\r\n]"))
            self._refuse_first(pa.array(broken[codes]), "an id without line breaks and NUL bytes")
        typed = self.source.delimiter is None and pa.types.is_string(kind)
        ids, position = np.unique(_texts(labels) if typed else to_identifiers(labels), return_inverse=True)
        return ids, position[codes]

    def _refuse_first(self, wrong: pa.Array, expected: str) -> None:
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            raise self.refusal(row, expected)


def to_identifiers(labels: pa.Array | list[str]) -> np.ndarray:
    """Ids as int64 when all are integers (or text of integers), as an object array of str otherwise."""
    array = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.string())
    if pa.types.is_integer(array.type):
        return np.asarray(array.cast(pa.int64()))
    if pc.all(pc.match_substring_regex(array, _INTEGER), min_count=0).as_py():
        return np.asarray(array.cast(pa.int64()))
    return _texts(array)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """``array`` as ``kind``, or ``None`` where it holds something else."""
    try:
        return array.cast(kind)
    except pa.ArrowException:
        return None


def _texts(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=object)


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    """One array, text as plain strings."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)


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
