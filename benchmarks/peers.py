"""What others use for the same computations. A peer that is not installed is a sentence saying so in its place."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from measuring import Peer
from torch import Tensor

from crane_kernels import Graph

FORWARD, BACKWARD = "forward", "forward and backward"
CASES = (FORWARD, BACKWARD)
COMPILED = "torch.compile of the reference"
PLAIN = "plain PyTorch"
PLAIN_COMPILED = "plain PyTorch, torch.compile"
LAYOUTS = ("CSR", "COO", "COO, uncoalesced", "COO, in random order")
TOO_LONG = "left out by --quick"
COMPILED_AT = "baby"  # torch.compile takes longer than all others together, for each size anew
MANY_EDGES, TOO_MANY = 10**6, "left out with so many edges, but where --scale names a size up to elec"
ONE_SCALE = f"compiled at {COMPILED_AT} alone, but where --scale names a size up to elec"

Function = Callable[..., Any]


def not_installed(package: str) -> str | None:
    """A sentence when ``package`` cannot be imported."""
    return None if importlib.util.find_spec(package) else "not installed"


def adjacency(graph: Graph, layout: str) -> Tensor:
    """The graph as existing code holds it.

    "CSR"; "COO", coalesced; "COO, uncoalesced", by rows, as scipy gives it to LightGCN's code; or
    "COO, in random order", as the graph that FREEDOM's code draws for each epoch.
    """
    csr = graph.to_torch()
    if layout == "CSR":
        return csr
    coo = csr.to_sparse_coo()
    if layout == "COO":
        return coo.coalesce()
    indices, values = coo.indices(), coo.values()
    if layout == "COO, in random order":
        order = torch.randperm(graph.nnz, generator=torch.Generator().manual_seed(0)).to(graph.device)
        indices, values = indices[:, order], values[order]
    return torch.sparse_coo_tensor(indices, values, coo.shape, check_invariants=False)


def products(graph: Graph) -> dict[str, Function | str]:
    """Functions that multiply ``graph`` by x, by name: torch's layouts and torch_sparse."""
    matrices = {f"torch.sparse {layout}": adjacency(graph, layout) for layout in LAYOUTS}
    torchs = {name: partial(torch.sparse.mm, matrix) for name, matrix in matrices.items()}
    return {**torchs, "torch_sparse": torch_sparse_product(graph)}


def scipy_product(graph: Graph, x: Tensor) -> Peer:
    """scipy's CSR product, which runs on one thread."""
    if graph.device.type != "cpu":
        return "runs on the CPU only"
    arrays = graph.value.numpy(), graph.col.numpy(), graph.rowptr.numpy()
    matrix, dense = sp.csr_matrix(arrays, shape=graph.shape), x.detach().numpy()
    return partial(matrix.dot, dense)


def torch_sparse_product(graph: Graph) -> Function | str:
    """pytorch_sparse's ``spmm``."""
    reason = not_installed("torch_sparse")
    if reason:
        return reason
    from torch_sparse import SparseTensor, matmul

    matrix = SparseTensor(rowptr=graph.rowptr, col=graph.col.long(), value=graph.value, sparse_sizes=graph.shape)
    return partial(matmul, matrix)


@lru_cache
def compiled(function: Function) -> Function:
    """``torch.compile`` of ``function``, once for all shapes."""
    return torch.compile(function, dynamic=True)


def run(function: Function | str, inputs: tuple[Tensor, ...], case: str = FORWARD) -> Peer:
    """Call ``function`` with ``inputs``; with ``BACKWARD`` also find the gradients of those that require them.

    The gradient of the result is ones, kept from the first call on: in training, what follows gives it. A reason in
    place of the function stays a reason.
    """
    if isinstance(function, str):
        return function
    if case == FORWARD:
        inputs = tuple(x.detach() for x in inputs)
        return lambda: function(*inputs)
    wanted = [x for x in inputs if x.requires_grad]

    def forward_and_backward() -> tuple[Tensor, ...]:
        result = function(*inputs)
        return result.detach(), *torch.autograd.grad(result, wanted, ones(result.shape, result.dtype, result.device))

    return forward_and_backward


@lru_cache(maxsize=2)
def ones(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same for ours and for its peers, so that none is charged for making it."""
    return torch.ones(shape, dtype=dtype, device=device)


def faiss_search(queries: Tensor, rows: Tensor, k: int) -> Peer:
    """The k rows of the highest dot product by faiss's exact index, on the CPU."""
    reason = not_installed("faiss")
    if reason:
        return reason
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.cpu().numpy())
    array = queries.cpu().numpy()

    def run() -> tuple[Tensor, Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        scores, indices = index.search(array, k)
        return torch.from_numpy(scores), torch.from_numpy(indices)

    return run


def plain_bpr(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """BPR as models write it."""
    positive = (user[users] * item[positives]).sum(dim=1)
    negative = (user[users] * item[negatives]).sum(dim=1)
    return -F.logsigmoid(positive - negative).mean()


def plain_info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """InfoNCE as models write it: an n x n matrix of logits."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(a), device=a.device))
