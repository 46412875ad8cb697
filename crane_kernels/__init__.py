"""Fast operations for multimodal graph recommenders, behind PyTorch autograd.

Every operation has a plain ``reference`` that defines its meaning and runs where nothing faster can; see
:mod:`crane_kernels.dispatch` for how one is chosen.
"""

from crane_kernels import dispatch
from crane_kernels.dispatch import use_implementation
from crane_kernels.graph import Graph
from crane_kernels.propagate import propagate
from crane_kernels.spmm import spmm

__all__ = ["Graph", "propagate", "spmm", "use_implementation"]

dispatch.load_environment()
