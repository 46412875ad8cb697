"""Traces the differentiable Triton operators as torch.compile does for a GPU, with no GPU.

Run as a program, in an environment without ``TRITON_INTERPRET``, which would make the operators opaque: prints as JSON
the kernels that Inductor is shown of each operator, forward and backward.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from triton.backends.compiler import GPUTarget

from crane_kernels.bpr_loss.triton import bpr_loss
from crane_kernels.info_nce.triton import info_nce
from crane_kernels.modality_attention.triton import modality_attention
from crane_kernels.recursive_cross_modal_attention.triton import recursive_cross_modal_attention


class Driver:
    """Stands in for a GPU's: torch asks it for the chip, to find out what a kernel writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def recursive_inputs(d: int) -> list[Tensor]:
    return leaves((300, 2, d), (2 * d, d), (d,), (2, d, d), (2, d, d))


def attention_inputs(d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return leaves((300, 2, d), (3 * d, d), (3 * d,), (d, d), (d,), dtype=dtype)


TRIPLES = tuple(torch.arange(start, start + 9) for start in (0, 1, 2))
CASES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "recursive_cross_modal_attention, narrow": (
        lambda *t: recursive_cross_modal_attention(*t, 2, 0.1), recursive_inputs(64),
    ),
    "recursive_cross_modal_attention, wide": (
        lambda *t: recursive_cross_modal_attention(*t, 2, 0.1), recursive_inputs(100),
    ),
    "modality_attention, narrow": (lambda *t: modality_attention(*t, 4, "modalities"), attention_inputs(64)),
    "modality_attention, wide": (lambda *t: modality_attention(*t, 4, "modalities"), attention_inputs(128)),
    "modality_attention, half": (
        lambda *t: modality_attention(*t, 4, "modalities"), attention_inputs(64, torch.bfloat16),
    ),
    "info_nce": (lambda a, b: info_nce(a, b, 0.2, None, True), leaves((40, 64), (40, 64))),
    "bpr_loss": (lambda user, item: bpr_loss(user, item, *TRIPLES), leaves((20, 64), (20, 64))),
}  # fmt: skip


def kernels_of(function: Callable[..., Tensor], tensors: list[Tensor]) -> dict[str, list[str]]:
    """The names of the kernels in the graphs of forward and backward."""
    found: dict[str, list[str]] = {}

    def compiler(direction: str) -> Callable[..., Any]:
        def compile_graph(graph: torch.fx.GraphModule, _example: Any) -> Any:
            launches = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
            kernels = [kernel_side_table.get_kernel(node.kwargs["kernel_idx"]) for node in launches]
            found[direction] = [getattr(kernel, "fn", kernel).__name__ for kernel in kernels]
            (output,) = (node for node in graph.graph.nodes if node.op == "output")
            return make_boxed_func(lambda *_: [_zeros(node) for node in output.args[0]])

        return compile_graph

    backend = aot_autograd(
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        partition_fn=min_cut_rematerialization_partition,
    )
    torch.compile(function, backend=backend, fullgraph=True)(*tensors).sum().backward()
    return found


def _zeros(node: Any) -> Any:
    """What the graph's output would be, without its values."""
    value = node.meta["val"] if isinstance(node, torch.fx.Node) else node
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    print(json.dumps({name: kernels_of(*case) for name, case in CASES.items()}))
