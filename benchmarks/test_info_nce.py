"""InfoNCE between two views of n rows, forward and backward, against the n x n matrix of logits."""

from __future__ import annotations

from functools import partial

import peers
import pytest
import torch
from machine import Work
from measuring import Measure

from crane_kernels import info_nce
from crane_kernels.info_nce import reference

OPERATION = "info_nce"
DIM, TEMPERATURE = 64, 0.2
ALL_ROWS, ROWS, QUICK_ROWS = (1024, 2048, 4096, 8192), (1024, 2048, 4096), (1024, 2048)
COMPILED_AT = 2048


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick, in_full = (metafunc.config.getoption(option) for option in ("--quick", "--scale"))
    metafunc.parametrize("n", QUICK_ROWS if quick else ALL_ROWS if in_full else ROWS)


@pytest.mark.parametrize("case", peers.CASES)
def test_info_nce(
    n: int, case: str, measure: Measure, device: str, requested: str | None, quick: bool, in_full: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, DIM, generator=generator).to(device).requires_grad_() for _ in range(2))
    not_compiled = peers.TOO_LONG if quick else None if in_full or n == COMPILED_AT else peers.ONE_SCALE
    others = {
        peers.PLAIN: peers.plain_info_nce,
        peers.PLAIN_COMPILED: not_compiled or peers.compiled(peers.plain_info_nce),
        peers.COMPILED: not_compiled or partial(peers.compiled(reference.info_nce), ids=None, symmetric=False),
    }
    backward = case == peers.BACKWARD

    def bound(loss: peers.Function | str) -> peers.Function | str:
        return loss if isinstance(loss, str) else lambda a, b: loss(a, b, TEMPERATURE)

    measure(
        peers.run(bound(partial(info_nce, implementation=requested)), (a, b), case),
        {name: peers.run(bound(other), (a, b), case) for name, other in others.items()},
        case=case,
        scale=f"{n:,} rows",
        size=n,
        unit="rows",
        # One product forward; backward needs the probabilities times a and times b.
        work=Work(2 * a.nbytes * (1 + backward), 0, 2 * n * n * DIM * (3 if backward else 1)),
    )
