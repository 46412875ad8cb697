"""The CUDA library as built: it loads beside this torch, registers its operators, and its kernels do not spill."""

from __future__ import annotations

import pytest
import torch

import crane_kernels
from crane_kernels import Graph, dispatch, extension

OPERATIONS = ("spmm", "propagate")
GRAPH = "Tensor rowptr, Tensor col, Tensor value"
TRANSPOSE = "Tensor? rowptr_t, Tensor? col_t, Tensor? value_t"
SCHEMAS = {
    "spmm": f"({GRAPH}, {TRANSPOSE}, Tensor? order, Tensor x, Tensor? rows, bool mean) -> Tensor",
    "spmm_t": f"({GRAPH}, {TRANSPOSE}, Tensor? order, Tensor grad, Tensor? rows, int n_cols) -> Tensor",
    "spmm_max": f"({GRAPH}, Tensor x, Tensor? rows) -> (Tensor y, Tensor argmax)",
    "sddmm": "(Tensor rowptr, Tensor col, Tensor? rowptr_t, Tensor? col_t, Tensor? order, Tensor grad, Tensor x, "
    "Tensor? rows) -> Tensor",
    "propagate": f"({GRAPH}, {TRANSPOSE}, Tensor x, int layers, Tensor? rows) -> Tensor",
    "propagate_t": f"({GRAPH}, {TRANSPOSE}, Tensor grad, int layers, Tensor? rows) -> Tensor",
}
ON_THE_HOST = {"transpose"}  # takes a graph, and is not called for those on a device


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    """What the build says of the CUDA kernels."""
    description = extension.cuda_description()
    if description.startswith("none: "):
        pytest.skip(description.removeprefix("none: "))
    return extension.build_record()["cuda"]


def operators() -> dict[str, torch._C.FunctionSchema]:
    """The schemas of the package's operators by name."""
    found = {schema.name: schema for schema in torch._C._jit_get_all_schemas()}
    return {name.partition("::")[2]: found[name] for name in found if name.startswith("crane_kernels::")}


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"crane_kernels::{name}", key)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.usefixtures("compiled")
def test_operators_have_one_schema_and_a_cpu_kernel(name: str):
    assert getattr(torch.ops.crane_kernels, name).overloads() == ["default"]
    assert str(operators()[name]) == f"crane_kernels::{name}{SCHEMAS[name]}"
    assert has_kernel(name, "CPU")


@pytest.mark.usefixtures("compiled")
def test_operators_of_graphs_are_those():
    takes_graph = {name for name, schema in operators().items() if schema.arguments[0].name == "rowptr"}
    assert takes_graph - ON_THE_HOST == set(SCHEMAS)


def test_operators_of_graphs_have_a_cuda_kernel(record: dict[str, object]):
    assert {name for name in operators() if has_kernel(name, "CUDA")} == set(SCHEMAS)


@pytest.mark.skipif(not torch.cuda.device_count(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_results_on_a_device(record: dict[str, object], dtype: torch.dtype):
    graph = Graph.from_edges([0, 1, 1], [1, 0, 1], [2.0, 1.0, 4.0], shape=(2, 2)).to("cuda")
    x = torch.tensor([[1.0], [2.0]], device="cuda", dtype=dtype, requires_grad=True)
    y = crane_kernels.spmm(graph, x, implementation="cuda")
    assert y.tolist() == [[4.0], [9.0]]
    y.sum().backward()
    assert x.grad.tolist() == [[1.0], [6.0]]
    mean = crane_kernels.propagate(graph, x, 1, implementation="cuda")
    assert mean.tolist() == [[2.5], [5.5]]


@pytest.mark.skipif(not torch.cuda.device_count(), reason="no CUDA device")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("some", [False, True])
def test_derivatives_on_a_device_are_those_on_the_cpu(
    record: dict[str, object], some: bool, reduce: str, learned: bool
):
    generator = torch.Generator().manual_seed(0)
    row, col = torch.randint(0, 40, (2, 900), generator=generator)
    rows = torch.tensor([3, 1, 3, 39]) if some else None
    x = torch.randn(40, 20, generator=generator, dtype=torch.float64)
    value = torch.randn(900, generator=generator, dtype=torch.float64)

    def results(device: str, implementation: str) -> list[torch.Tensor]:
        own = x.to(device).requires_grad_(), value.to(device).requires_grad_(learned)
        graph = Graph.from_edges(row.to(device), col.to(device), own[1], (40, 40))
        wanted = None if rows is None else rows.to(device)
        y = crane_kernels.spmm(graph, own[0], wanted, reduce, implementation=implementation)
        z = crane_kernels.propagate(graph, own[0], 2, wanted, implementation=implementation)
        loss = y.square().sum() + z.square().sum()
        return [y, z, *torch.autograd.grad(loss, own if learned else own[:1])]

    for found, expected in zip(results("cuda", "cuda"), results("cpu", "reference"), strict=True):
        torch.testing.assert_close(found.cpu(), expected)


def test_the_build_says_what_it_is_for(record: dict[str, object]):
    assert record["built"] is True
    assert extension.cuda_description().startswith(f"built with nvcc {record['nvcc']} for ")
    assert record["architectures"]


def test_registers(record: dict[str, object]):
    kernels = record["kernels"]
    assert {name.partition("<")[0] for name, *_ in kernels} == {
        "mark_columns_kernel",
        "mark_rows_kernel",
        "reorder_kernel",
        "sddmm_kernel",
        "spmm_hubs_kernel",
        "spmm_kernel",
        "spmm_wanted_kernel",
        "sum_rows_kernel",
    }
    assert [(name, architecture) for name, architecture, _, spilled in kernels if spilled] == []
    # 256 threads a block and 65,536 registers: 128 leave room for two blocks, 80 for three.
    assert max(registers for _, _, registers, _ in kernels) <= 128
    plain = [registers for name, _, registers, _ in kernels if name.startswith("spmm_kernel<float, 16, Sum")]
    assert max(plain) <= 80


@pytest.mark.parametrize("operation", OPERATIONS)
def test_tensors_elsewhere_are_refused(operation: str):
    graph = Graph.from_edges([0, 1], [1, 0], shape=(2, 2))
    implementation = next(i for i in dispatch._registry[operation] if i.name == "cuda")
    assert implementation.refuses(graph, torch.ones(2, 1)) == "x is on device cpu, not on a CUDA device"
    with pytest.raises(RuntimeError, match="'cuda' was requested but"):
        dispatch.call(operation, "cuda", graph, torch.ones(2, 1), *([1] if operation == "propagate" else []))
