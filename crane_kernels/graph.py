"""The sparse matrix every graph operation takes: a validated CSR matrix that caches its transpose."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crane_kernels import checks, extension
from crane_kernels.ordered import sum_at, take

Indices = Tensor | np.ndarray[Any, Any] | Sequence[int]
Values = Tensor | np.ndarray[Any, Any] | Sequence[float]
Normalisation = Literal["symmetric", "row", "column"]
Duplicates = Literal["sum", "keep"]


@dataclass
class _Structure:
    """Where a matrix has entries, for all graphs that differ in values alone: what is derived from it is found once."""

    rowptr: Tensor
    col: Tensor
    shape: tuple[int, int]
    transposed: tuple[Tensor, Tensor, Tensor] | None = None

    def transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rowptr and col of the transpose, and for each of its edges which of these it is."""
        if self.transposed is not None and _serves(self.transposed[0]):
            return self.transposed
        found = _transpose(self.rowptr, self.col, self.shape)
        if _tensors_are_real():
            self.transposed = found
        return found


class Graph:
    """A sparse matrix A of shape (n_rows, n_cols) in compressed sparse rows; A[i, j] is the weight of the edge j -> i.

    A graph keeps copies of arrays that the caller could change, but for values that require gradients, which stay what
    they are. Columns ascend within a row. What is derived from it (its transpose, its values in another dtype) is built
    when first needed and kept on the object.

    ``rowptr`` and ``col`` must not change; :meth:`with_value` makes a graph of other values. Values that are changed in
    place all the same are noticed, and what was derived from them is built again; not so within torch.compile and
    inference mode, nor through ``.data``.

    Values must be finite: an infinite one, mostly from a division by zero, would turn zeros into NaN in a product.

    Attributes:
        rowptr: (n_rows + 1,) int64; the edges of row i are rowptr[i] to rowptr[i + 1].
        col: (nnz,) column of each edge; int32 where n_cols fits, else int64.
        value: (nnz,) floating-point weight of each edge.
        shape: (n_rows, n_cols).
    """

    def __init__(
        self,
        rowptr: Indices,
        col: Indices,
        value: Values | None,
        shape: Sequence[int],
        symmetric: bool | None = None,
    ) -> None:
        """Take over CSR arrays as they are, after checking them.

        Args:
            rowptr: (n_rows + 1,) integers, ascending from 0 to nnz.
            col: (nnz,) integers in [0, n_cols), ascending within each row; equal ones are edges that were kept apart.
            value: (nnz,) weights, or None for ones (float32).
            shape: (n_rows, n_cols).
            symmetric: whether A equals its transpose, if the caller knows (it is believed); None: found when needed.

        Raises:
            TypeError: indices that are no integers, or values that are no numbers.
            ValueError: an index out of range, lengths or devices that do not match, NaN or infinite values, unsorted
                rows.
        """
        n_rows, n_cols = _shape(shape)
        pointers, columns = _indices("rowptr", rowptr), _indices("col", col)
        checks.same_device("col", columns, pointers.device, "rowptr")
        weights = _values(value, columns)
        _check_rowptr(pointers, n_rows, columns.numel())
        _check_range("col", columns, n_cols)
        _check_sorted(pointers, columns)
        columns = _own(columns.to(checks.index_dtype(n_cols)), col)
        self._set(_Structure(_own(pointers, rowptr), columns, (n_rows, n_cols)), _own(weights, value), symmetric)

    def _set(self, structure: _Structure, value: Tensor, symmetric: bool | None) -> None:
        shape = structure.shape
        if symmetric is not None and not isinstance(symmetric, bool):
            raise TypeError(f"symmetric: found {symmetric!r}, expected True, False or None")
        if symmetric and shape[0] != shape[1]:
            raise ValueError(f"symmetric: found True for shape {shape}, expected a square matrix")
        self._structure = structure
        self._value = value
        self._distinct: bool | None = None
        self._made = self._version = _version(value)
        self._derive(symmetric)

    def _derive(self, symmetric: bool | None) -> None:
        """Begin with nothing derived from the values."""
        self._known_symmetric = symmetric
        self._transpose: Graph | None = None
        # What this is the transpose of (no cycle, so freed at once), and at which version of its values.
        self._source: tuple[weakref.ref[Graph], int] | None = None
        self._cast: dict[torch.dtype, Graph] = {}

    def _notice_changes(self) -> None:
        """Forget what was derived from values that have been changed in place since."""
        if _changed(self._value, self._version):
            self._version = _version(self._value)
            self._derive(None)

    @property
    def _symmetric(self) -> bool | None:
        """Whether A equals its transpose, None while that is not known."""
        self._notice_changes()
        return self._known_symmetric

    @classmethod
    def _of(cls, structure: _Structure, value: Tensor, symmetric: bool | None = None) -> Graph:
        graph = cls.__new__(cls)
        graph._set(structure, value, symmetric)
        return graph

    @classmethod
    def _trusted(
        cls, rowptr: Tensor, col: Tensor, value: Tensor, shape: tuple[int, int], symmetric: bool | None = None
    ) -> Graph:
        """A graph of arrays that are right by construction: rowptr int64, col of the right dtype and sorted."""
        return cls._of(_Structure(rowptr, col, shape), value, symmetric)

    @classmethod
    def from_edges(
        cls,
        row: Indices,
        col: Indices,
        value: Values | None = None,
        shape: Sequence[int] | None = None,
        *,
        symmetric: bool | None = None,
        duplicates: Duplicates = "sum",
    ) -> Graph:
        """Build a graph from a list of edges in any order.

        Args:
            row: (n_edges,) integers in [0, n_rows).
            col: (n_edges,) integers in [0, n_cols).
            value: (n_edges,) weights, or None for ones (float32).
            shape: (n_rows, n_cols); None: the largest indices, plus one.
            symmetric: whether A equals its transpose, if the caller knows (it is believed); None: found when needed.
            duplicates: edges given more than once are added up to one (``"sum"``), or stay apart in the order they were
                given (``"keep"``), which the mean over a row's edges tells from one edge of their sum.

        Raises:
            TypeError: indices that are no integers, or values that are no numbers.
            ValueError: an index out of range, lengths that do not match, NaN or infinite values or sums, an unknown
                ``duplicates``.
        """
        if duplicates not in ("sum", "keep"):
            raise ValueError(f"duplicates: found {duplicates!r}, expected 'sum' or 'keep'")
        rows, columns = _indices("row", row), _indices("col", col)
        if rows.numel() != columns.numel():
            raise ValueError(f"col: found {columns.numel()} indices, expected {rows.numel()}, one for each of row")
        checks.same_device("col", columns, rows.device, "row")
        weights = _values(value, columns)
        n_rows, n_cols = _shape((_span(rows), _span(columns)) if shape is None else shape)
        _check_range("row", rows, n_rows)
        _check_range("col", columns, n_cols)
        pointers, columns, order, repeats = _sort(rows, columns, n_rows, n_cols)
        weights = weights if value is None else weights.index_select(0, order)
        if repeats and duplicates == "sum":
            pointers, columns, weights = _sum_repeats(pointers, columns, weights)
            _require_finite("value, summed over duplicates", weights)
        graph = cls._trusted(pointers, columns, weights, (n_rows, n_cols), symmetric)
        graph._distinct = not repeats or duplicates == "sum"
        return graph

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Indices,
        edge_weight: Values | None = None,
        num_nodes: int | None = None,
        *,
        duplicates: Duplicates = "sum",
    ) -> Graph:
        """Build a graph from PyTorch Geometric's arrays: an edge (source, target) becomes A[target, source].

        ``spmm(graph, x)`` then adds to each node what its edges bring from their sources.

        Args:
            edge_index: (2, n_edges) integers in [0, num_nodes), the sources and the targets.
            edge_weight: (n_edges,) weights, or None for ones (float32).
            num_nodes: None: the largest index, plus one.
            duplicates: see :meth:`from_edges`.

        Raises:
            TypeError: indices that are no integers, or weights that are no numbers.
            ValueError: ``edge_index`` has another shape, and what :meth:`from_edges` refuses.
        """
        edges = _tensor("edge_index", edge_index)
        if edges.dim() != 2 or edges.shape[0] != 2:
            raise ValueError(f"edge_index: found shape {tuple(edges.shape)}, expected (2, n_edges)")
        source, target = (_indices("edge_index", row) for row in edges)
        n = max(_span(source), _span(target)) if num_nodes is None else num_nodes
        return cls.from_edges(target, source, edge_weight, (n, n), duplicates=duplicates)

    @classmethod
    def from_torch(cls, sparse: Tensor) -> Graph:
        """Build a graph from a two-dimensional torch sparse tensor: COO (coalesced or not), CSR or CSC.

        Entries stored more than once are summed; zeros that are stored stay. Gradients of the values reach ``sparse``.

        Raises:
            TypeError: ``sparse`` is no sparse tensor of these layouts.
            ValueError: it is not two-dimensional, its rows are dense, or it holds NaN or infinity.
        """
        if not isinstance(sparse, Tensor):
            raise TypeError(f"sparse: found {type(sparse).__name__}, expected a torch sparse tensor")
        if sparse.dim() != 2:
            raise ValueError(f"sparse: found shape {tuple(sparse.shape)}, expected two dimensions")
        if sparse.layout == torch.sparse_coo:
            if sparse.dense_dim():
                raise ValueError(f"sparse: found {sparse.dense_dim()} dense dimension, expected two sparse ones")
            if sparse.requires_grad:  # values without coalescing are out of autograd's sight
                sparse = sparse.coalesce()
            row, col = sparse._indices()
            value = sparse.values() if sparse.requires_grad else sparse._values()
        elif sparse.layout == torch.sparse_csr:
            row, col, value = _expand(sparse.crow_indices()), sparse.col_indices(), sparse.values()
        elif sparse.layout == torch.sparse_csc:
            row, col, value = sparse.row_indices(), _expand(sparse.ccol_indices()), sparse.values()
        else:
            raise TypeError(f"sparse: found layout {sparse.layout}, expected sparse COO, CSR or CSC")
        return cls.from_edges(row, col, value, sparse.shape)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Graph:
        """Build a graph from a scipy sparse matrix or array of any format; stored zeros stay, duplicates are summed.

        Raises:
            TypeError: ``matrix`` is no scipy sparse matrix.
            ValueError: it holds NaN or infinity.
        """
        if not hasattr(matrix, "tocoo"):
            raise TypeError(f"matrix: found {type(matrix).__name__}, expected a scipy sparse matrix")
        coo = matrix.tocoo()
        return cls.from_edges(coo.row, coo.col, coo.data, coo.shape)

    @property
    def rowptr(self) -> Tensor:
        """(n_rows + 1,) int64."""
        return self._structure.rowptr

    @property
    def col(self) -> Tensor:
        """(nnz,) int32 or int64, ascending within each row."""
        return self._structure.col

    @property
    def value(self) -> Tensor:
        """(nnz,) floating point."""
        return self._value

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_cols)."""
        return self._structure.shape

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def n_cols(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.col.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the arrays live."""
        return self._value.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self._value.dtype

    @property
    def symmetric(self) -> bool:
        """Whether A equals its transpose exactly: as given at construction, else found (and kept) at the first look."""
        known = self._symmetric
        if known is None:
            known = self._known_symmetric = self.n_rows == self.n_cols and self._equals(self._transposed())
        return known

    def __repr__(self) -> str:
        return f"Graph(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype}, device={str(self.device)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Graph._trusted, (self.rowptr, self.col, self._value, self.shape, self._symmetric)

    def row(self) -> Tensor:
        """Row of each edge: (nnz,) int64, ascending."""
        return _expand(self.rowptr, self.nnz)

    def degrees(self) -> Tensor:
        """Sum of each row's values (the number of its edges, where all values are one): (n_rows,), dtype of value."""
        return self._row_sums().to(self.dtype)

    def _wide(self) -> Tensor:
        """The values, in float32 for half precision, in which a sum of ones stops growing."""
        return self._value.to(torch.promote_types(self.dtype, torch.float32))

    def _row_sums(self) -> Tensor:
        value = self._wide()
        if value.requires_grad:  # segments have no second derivative
            return sum_at(self.row(), value, self.n_rows)
        return torch.segment_reduce(value, "sum", offsets=self.rowptr)

    def _column_sums(self) -> Tensor:
        if self._symmetric:
            return self._row_sums()
        return sum_at(self.col, self._wide(), self.n_cols)

    def transpose(self) -> Graph:
        """The transpose; built when first asked for and kept. A graph known to be symmetric is its own."""
        return self if self._symmetric else self._transposed()

    def transpose_structure(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rowptr and col of the transpose, and for each of its edges which edge of this graph it is."""
        return self._structure.transpose()

    def _transposed(self) -> Graph:
        self._notice_changes()
        source = None if self._source is None else self._source[0]()
        if source is not None and self._source is not None and not _changed(source._value, self._source[1]):
            return source
        kept = self._transpose
        if kept is not None and not _changed(kept._value, kept._made) and _serves(kept._value):
            return kept
        rowptr, col, order = self._structure.transpose()
        structure = _Structure(rowptr, col, (self.n_cols, self.n_rows))
        transpose = Graph._of(structure, self._value.index_select(0, order), self._symmetric)
        # Values that are learned belong to one autograd graph: then it is never kept.
        if _tensors_are_real() and not self._value.requires_grad:
            self._transpose = transpose
            transpose._source = weakref.ref(self), self._version
        return transpose

    @property
    def distinct(self) -> bool:
        """Whether no edge is there twice; found (and kept) at the first look."""
        if self._distinct is None:
            row, col = self.row(), self.col
            self._distinct = not bool(((row[1:] == row[:-1]) & (col[1:] == col[:-1])).any())
        return self._distinct

    def coalesce(self) -> Graph:
        """The same matrix with edges that were kept apart added up."""
        return self if self.distinct else Graph.from_edges(self.row(), self.col, self._value, self.shape)

    def _equals(self, other: Graph) -> bool:
        return (
            self.shape == other.shape
            and torch.equal(self.rowptr, other.rowptr)
            and torch.equal(self.col, other.col)
            and torch.equal(self._value, other._value)
        )

    def to(self, target: torch.device | str | torch.dtype) -> Graph:
        """This graph with its arrays on another device, or its values in another floating-point dtype.

        Raises:
            TypeError: ``target`` is a dtype that is not floating-point.
            ValueError: a value is too large for the dtype.
        """
        if isinstance(target, torch.dtype):
            return self._with_dtype(target)
        if torch.device(target) == self.device:
            return self
        arrays = self.rowptr.to(target), self.col.to(target), self._value.to(target)
        return Graph._trusted(*arrays, self.shape, self._symmetric)

    def _with_dtype(self, dtype: torch.dtype) -> Graph:
        if dtype == self.dtype:
            return self
        if dtype not in checks.FLOATING:
            raise TypeError(f"target: found dtype {dtype}, expected a floating-point dtype")
        if self._value.requires_grad:
            learned = Graph._of(self._structure, self._value.to(dtype))
            _require_finite(f"value as {dtype}", learned._value)
            return learned
        self._notice_changes()
        kept = self._cast.get(dtype)
        if kept is not None and not _changed(kept._value, kept._made) and _serves(kept._value):
            return kept
        # Rounding can make a matrix symmetric but never unsymmetric: only a yes carries over.
        cast = Graph._of(self._structure, self._value.to(dtype), self._symmetric or None)
        _require_finite(f"value as {dtype}", cast._value)
        if _tensors_are_real():
            self._cast[dtype] = cast
        return cast

    def with_value(self, value: Tensor, symmetric: bool | None = None) -> Graph:
        """The same edges with other weights.

        Args:
            value: (nnz,) floating point, on this graph's device.
            symmetric: whether the new matrix equals its transpose, if known.

        Raises:
            TypeError: ``value`` is not floating-point.
            ValueError: its shape is not (nnz,), or it holds NaN or infinity.
        """
        checks.instance("value", value, Tensor)
        checks.same_device("value", value, self.device, "the graph")
        return Graph._of(self._structure, _own(_values(value, self.col), value), symmetric)

    def _subset(self, kept: Tensor, rowptr: Tensor) -> Graph:
        """The graph of some of the edges, for callers that have counted them.

        Args:
            kept: positions of the edges, ascending.
            rowptr: (n_rows + 1,) int64, how many of them lie before each row.
        """
        return Graph._trusted(rowptr, self.col[kept], self._value[kept], self.shape)

    def normalize(self, how: Normalisation) -> Graph:
        """Scale the values by the degrees: with D = row sums and C = column sums of the values,

        ``"symmetric"``: D^{-1/2} A C^{-1/2} (Kipf and Welling 2017, extended to rectangular A); ``"row"``: D^{-1} A;
        ``"column"``: A C^{-1}. Empty rows and columns stay empty. The dtype stays that of the values, float32 for the
        ones of a graph made without values.

        Raises:
            ValueError: an unknown ``how``, negative values, or values so small or large that a result is not finite.
        """
        if how not in ("symmetric", "row", "column"):
            raise ValueError(f"how: found {how!r}, expected 'symmetric', 'row' or 'column'")
        if self.nnz and float(self._value.detach().min()) < 0:
            raise ValueError("normalize: found negative values, expected values of at least zero")
        power = -0.5 if how == "symmetric" else -1.0
        value = self._wide()
        scale = torch.ones_like(value)
        if how != "column":
            factor = _safe_power(self._row_sums(), power)
            scale = take(factor, self.row())
        if how != "row":
            scale = scale * take(_safe_power(self._column_sums(), power), self.col)
        symmetric = self._symmetric if how == "symmetric" else None
        normalized = (value * scale).to(self.dtype)
        _require_finite("normalize, of values too small or large for their degrees", normalized)
        return Graph._of(self._structure, normalized, symmetric)

    def bipartite(self) -> Graph:
        """The symmetric graph [[0, A], [A^T, 0]] over rows and columns: shape (n_rows + n_cols,) * 2.

        For a graph of users x items, nodes 0 .. n_users - 1 are the users and the items follow.
        """
        transpose = self._transposed()
        n = self.n_rows + self.n_cols
        dtype = checks.index_dtype(n)
        return Graph._trusted(
            torch.cat([self.rowptr, transpose.rowptr[1:] + self.nnz]),
            torch.cat([self.col.to(dtype) + self.n_rows, transpose.col.to(dtype)]),
            torch.cat([self._value, transpose._value]),
            (n, n),
            symmetric=True,
        )

    def to_dense(self) -> Tensor:
        """A as a dense (n_rows, n_cols) tensor."""
        return self._value.new_zeros(self.shape).index_put((self.row(), self.col.long()), self._value, accumulate=True)

    def to_torch(self) -> Tensor:
        """A as a torch sparse CSR tensor with int64 indices."""
        return torch.sparse_csr_tensor(self.rowptr, self.col.long(), self._value, self.shape, check_invariants=False)


def _tensors_are_real() -> bool:
    """Whether what is computed can be kept: torch.export and torch.func compute with stand-ins for tensors."""
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return not torch._C._are_functorch_transforms_active()


def _serves(kept: Tensor) -> bool:
    """Whether a kept tensor can be used here: outside inference mode autograd saves none that was made within."""
    return torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not kept.is_inference()


def _version(value: Tensor) -> int:
    """How often ``value`` was changed in place, where torch counts that."""
    return 0 if torch.compiler.is_compiling() or value.is_inference() else value._version


def _changed(value: Tensor, version: int) -> bool:
    """Whether ``value`` was changed in place after that version, as far as torch tells."""
    return not torch.compiler.is_compiling() and _version(value) != version


def _shape(shape: Sequence[int]) -> tuple[int, int]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape: found {shape!r}, expected two integers") from None
    if len(sizes) != 2 or min(sizes) < 0 or max(sizes) >= checks.LARGEST:
        raise ValueError(f"shape: found {sizes}, expected two sizes of at least zero and below 2^48")
    return sizes[0], sizes[1]


def _tensor(name: str, values: Indices | Values) -> Tensor:
    """Tensors as they are, arrays in their dtype, sequences as ``torch.tensor`` has it (floats become float32)."""
    if isinstance(values, Tensor):
        return values  # torch.as_tensor would move it to torch's default device
    try:
        if isinstance(values, np.ndarray):  # torch warns of one that it could not write to
            return torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        huge = _beyond_64_bits(values)
        if huge is not None:
            raise ValueError(f"{name}: found {huge}, expected numbers of 64 bits") from None
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TypeError(f"{name}: found {type(values).__name__}, expected an array of numbers ({reason})") from None


def _beyond_64_bits(values: Any) -> int | None:
    """The first integer of a sequence, or of several in one, that no int64 holds."""
    entries = np.array(values, dtype=object).flat
    return next((n for n in entries if isinstance(n, int) and not -(2**63) <= n < 2**63), None)


def _indices(name: str, values: Indices) -> Tensor:
    """``values`` as a one-dimensional int64 tensor."""
    tensor = _tensor(name, values)
    if tensor.numel() == 0:
        tensor = tensor.to(torch.int64)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{name}: found dtype {tensor.dtype}, expected integers")
    if tensor.dim() != 1:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected one dimension")
    return tensor.detach().long().contiguous()


def _values(values: Values | None, col: Tensor) -> Tensor:
    """``values`` as a contiguous floating-point tensor beside ``col``; integers become float32."""
    if values is None:
        return torch.ones(col.numel(), dtype=torch.float32, device=col.device)
    tensor = _tensor("value", values)
    if tensor.is_complex():
        raise TypeError(f"value: found dtype {tensor.dtype}, expected real numbers")
    if tensor.dtype not in checks.FLOATING:
        tensor = tensor.float()
    if tuple(tensor.shape) != (col.numel(),):
        raise ValueError(f"value: found shape {tuple(tensor.shape)}, expected ({col.numel()},), one for each edge")
    checks.same_device("value", tensor, col.device, "col")
    _require_finite("value", tensor)
    return tensor.contiguous()


def _require_finite(name: str, values: Tensor) -> None:
    if torch.compiler.is_compiling() or not _tensors_are_real() or _finite(values):  # a look breaks a compiled graph
        return
    at = int((~values.detach().isfinite()).nonzero()[0])
    found = "NaN" if bool(values[at].isnan()) else float(values[at])
    raise ValueError(f"{name}: found {found} at edge {at}, expected finite numbers")


def _finite(values: Tensor) -> bool:
    """Whether all are; the extremes are NaN where any is."""
    return values.numel() == 0 or bool(torch.stack(values.detach().aminmax()).isfinite().all())


def _own(tensor: Tensor, given: object) -> Tensor:
    """``tensor``, or a copy of it where it shares memory with what the caller gave; values being learned stay."""
    if tensor.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return tensor
    if isinstance(given, np.ndarray):
        return tensor.clone() if np.may_share_memory(tensor.numpy(), given) else tensor
    if not isinstance(given, Tensor):
        return tensor
    same = given.device == tensor.device and given.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return tensor.clone() if same else tensor


def _check_rowptr(rowptr: Tensor, n_rows: int, nnz: int) -> None:
    if rowptr.numel() != n_rows + 1:
        raise ValueError(f"rowptr: found {rowptr.numel()} entries, expected {n_rows + 1}, one more than rows")
    if int(rowptr[0]) != 0 or int(rowptr[-1]) != nnz:
        raise ValueError(f"rowptr: found it from {int(rowptr[0])} to {int(rowptr[-1])}, expected from 0 to {nnz}")
    falls = rowptr[1:] < rowptr[:-1]
    if bool(falls.any()):
        raise ValueError(f"rowptr: found it falling after row {int(falls.nonzero()[0])}, expected it to ascend")


def _check_range(name: str, index: Tensor, size: int) -> None:
    if index.numel() == 0:
        return
    low, high = index.aminmax()
    if int(low) < 0 or int(high) >= size:
        at = int(((index < 0) | (index >= size)).nonzero()[0])
        expected = f"0 to {size - 1}" if size > 0 else "at least 0" if int(low) < 0 else "none, as the shape has none"
        raise ValueError(f"{name}: found index {int(index[at])} at edge {at}, expected {expected}")


def _check_sorted(rowptr: Tensor, col: Tensor) -> None:
    row = _expand(rowptr, col.numel())
    wrong = (col[1:] < col[:-1]) & (row[1:] == row[:-1])
    if bool(wrong.any()):
        at = int(row[1:][wrong][0])
        raise ValueError(
            f"col: found columns of row {at} that do not ascend, expected sorted rows (use Graph.from_edges)"
        )


def _span(index: Tensor) -> int:
    return int(index.max()) + 1 if index.numel() else 0


def _expand(rowptr: Tensor, nnz: int | None = None) -> Tensor:
    """Row of each entry of a compressed row pointer."""
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return torch.repeat_interleave(rows, rowptr.diff().long(), output_size=nnz)


def _count_rows(row: Tensor, n_rows: int) -> Tensor:
    """Row pointer of sorted row indices: (n_rows + 1,) int64."""
    return torch.searchsorted(row, torch.arange(n_rows + 1, device=row.device))


def _transpose(rowptr: Tensor, col: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rowptr and col of the transpose, and for each of its edges which of the given ones it is."""
    n_rows, n_cols = shape
    if col.device.type == "cpu" and extension.missing() is None:
        rowptr_t, col_t, order = torch.ops.crane_kernels.transpose(rowptr, col, n_cols)
        return rowptr_t, col_t, order
    order = torch.sort(col, stable=True).indices
    row = _expand(rowptr, col.shape[0])[order].to(checks.index_dtype(n_rows))
    return _count_rows(col[order].long(), n_cols), row, order.to(checks.index_dtype(col.shape[0]))


def _sort(row: Tensor, col: Tensor, n_rows: int, n_cols: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Edges by row, then column: rowptr, col, which of the given ones each is, and whether a place is there twice.

    Those of one place stay in the order they were given.
    """
    if row.device.type == "cpu" and extension.missing() is None:
        rowptr, col, order, repeats = torch.ops.crane_kernels.sort_edges(row, col, n_rows, n_cols)
        return rowptr, col, order, bool(repeats)
    if row.numel() == 0 or int(row.max()) < checks.INT64_MAX // max(n_cols, 1):
        order = torch.sort(row * n_cols + col, stable=True).indices
    else:
        by_col = torch.sort(col, stable=True).indices
        order = by_col[torch.sort(row[by_col], stable=True).indices]
    row, col = row[order], col[order]
    repeats = bool(((row[1:] == row[:-1]) & (col[1:] == col[:-1])).any())
    return _count_rows(row, n_rows), col.to(checks.index_dtype(n_cols)), order, repeats


def _sum_repeats(rowptr: Tensor, col: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted edges with those of one place summed in order."""
    row = _expand(rowptr, col.numel())
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | (col[1:] != col[:-1])
    place = first.cumsum(0) - 1
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    summed = sum_at(place, wide, int(place[-1]) + 1).to(value.dtype)
    return _count_rows(row[first], rowptr.numel() - 1), col[first], summed


def _safe_power(x: Tensor, power: float) -> Tensor:
    """``x ** power``, and 0 where ``x`` is 0."""
    return torch.where(x > 0, x, torch.ones_like(x)).pow(power) * (x > 0)


def _fake_sort_edges(row: Tensor, col: Tensor, n_rows: int, n_cols: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_edges = row.shape[0]
    sorted_col = col.new_empty(n_edges, dtype=checks.index_dtype(n_cols))
    order = col.new_empty(n_edges, dtype=checks.index_dtype(n_edges))
    return row.new_empty(n_rows + 1), sorted_col, order, row.new_empty(1)


def _fake_transpose(rowptr: Tensor, col: Tensor, n_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    n_rows, n_edges = rowptr.shape[0] - 1, col.shape[0]
    return (
        rowptr.new_empty(n_cols + 1),
        col.new_empty(n_edges, dtype=checks.index_dtype(n_rows)),
        col.new_empty(n_edges, dtype=checks.index_dtype(n_edges)),
    )


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::sort_edges", _fake_sort_edges)
    torch.library.register_fake("crane_kernels::transpose", _fake_transpose)
