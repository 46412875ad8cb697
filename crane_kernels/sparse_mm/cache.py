"""Graphs of torch's sparse tensors, kept as long as the tensors' memory.

The key is the storage of a tensor's values: torch keeps one Python object for a storage as long as the storage lives,
so that aliases such as ``A.detach()`` share an entry and the entry goes when the last of them goes. Addresses are never
compared: they are used again.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, UntypedStorage

from crane_kernels.graph import Graph

LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class _Entry:
    """A graph, and the arrays it was made from as they were then."""

    def __init__(self, A: Tensor, arrays: tuple[Tensor, ...]) -> None:
        self.storages = [ref(array.untyped_storage()) for array in arrays]
        self.state = _state(A, arrays)
        with torch.inference_mode(False):  # training must be able to save what a validation step converted
            self.graph = _own(Graph.from_torch(A.detach()), arrays)

    def serves(self, A: Tensor, arrays: tuple[Tensor, ...]) -> bool:
        """Whether ``A`` is what the graph was made from, and has not changed since."""
        same = (r() is array.untyped_storage() for r, array in zip(self.storages, arrays, strict=True))
        return self.state == _state(A, arrays) and all(same)


_entries: WeakKeyDictionary[UntypedStorage, WeakKeyDictionary[UntypedStorage, _Entry]] = WeakKeyDictionary()


@torch.compiler.disable(reason="torch.compile takes no sparse tensors")  # type: ignore[no-untyped-call, untyped-decorator]
def graph_of(A: Tensor) -> Graph:
    """The graph of a sparse matrix in one of ``LAYOUTS``, from its last conversion if there was one.

    Raises:
        ValueError: ``A`` was made in inference mode, or what :meth:`Graph.from_torch` raises.
    """
    arrays = _arrays(A)
    if any(array.is_inference() for array in arrays):
        raise ValueError("A was made in inference mode, where torch does not count changes")
    index, value = (array.untyped_storage() for array in arrays[-2:])
    by_index = _entries.setdefault(value, WeakKeyDictionary())
    entry = by_index.get(index)
    if entry is None or not entry.serves(A, arrays):
        entry = by_index[index] = _Entry(A, arrays)
    return entry.graph


def _arrays(A: Tensor) -> tuple[Tensor, ...]:
    """The arrays that ``A`` consists of, indices before values."""
    if A.layout == torch.sparse_coo:
        return A._indices(), A._values()
    if A.layout == torch.sparse_csr:
        return A.crow_indices(), A.col_indices(), A.values()
    return A.ccol_indices(), A.row_indices(), A.values()


def _state(A: Tensor, arrays: tuple[Tensor, ...]) -> tuple[Any, ...]:
    places = [(array._version, array.storage_offset(), array.shape, array.stride(), array.dtype) for array in arrays]
    return A.layout, A.shape, A._version, *places


def _own(graph: Graph, arrays: tuple[Tensor, ...]) -> Graph:
    """The graph without any of ``arrays``' memory: an entry that held its own key would live for ever."""
    taken = {array.untyped_storage().data_ptr() for array in arrays}
    rowptr, col, value = (
        array.clone() if array.untyped_storage().data_ptr() in taken else array
        for array in (graph.rowptr, graph.col, graph.value)
    )
    return Graph._trusted(rowptr, col, value, graph.shape)
