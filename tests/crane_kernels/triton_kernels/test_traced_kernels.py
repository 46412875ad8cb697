"""torch.compile traces the Triton operators down to their kernels, forward and backward, without a graph break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)

PROGRAM = Path(__file__).with_name("traced_kernels.py")
EXPECTED = {
    "recursive_cross_modal_attention, narrow": ("rca_pass_kernel", "rca_row_gradients_kernel"),
    "recursive_cross_modal_attention, wide": ("rca_wide_pass_kernel", "rca_wide_row_gradients_kernel"),
    "modality_attention, narrow": ("modality_attention_fwd_kernel", "modality_attention_gradient_kernel"),
    "modality_attention, wide": ("modality_attention_context_kernel", "modality_attention_gradient_kernel"),
    "modality_attention, half": ("modality_attention_fwd_kernel", "modality_attention_weight_gradients_kernel"),
    "info_nce": ("info_nce_fwd_kernel", "info_nce_bwd_kernel"),
    "bpr_loss": ("bpr_loss_fwd_kernel", "bpr_loss_bwd_item_kernel"),
}


@pytest.fixture(scope="module")
def traced() -> dict[str, dict[str, list[str]]]:
    """The kernels that Inductor is shown, traced in a process that does not interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", str(PROGRAM)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("operator", EXPECTED)
def test_inductor_sees_the_kernels(operator: str, traced: dict[str, dict[str, list[str]]]) -> None:
    forward, backward = EXPECTED[operator]
    assert forward in traced[operator]["forward"]
    assert backward in traced[operator]["backward"]
