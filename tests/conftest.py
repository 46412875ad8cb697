"""Where there is no GPU, Triton's kernels run in its interpreter, which must be said before anything imports Triton."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
