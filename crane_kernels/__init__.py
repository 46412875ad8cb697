"""Fast operations for multimodal graph recommenders, behind PyTorch autograd.

Every operation has a plain ``reference`` that defines its meaning and runs where nothing faster can; see
:mod:`crane_kernels.dispatch` for how one is chosen.
"""

from crane_kernels import dispatch
from crane_kernels.bpr_loss import bpr_loss
from crane_kernels.dispatch import use_implementation
from crane_kernels.graph import Graph
from crane_kernels.info_nce import info_nce
from crane_kernels.integrate import accelerate, accelerated
from crane_kernels.knn_graph import knn_graph
from crane_kernels.masked_topk import masked_topk
from crane_kernels.memory import tune_memory
from crane_kernels.modality_attention import modality_attention
from crane_kernels.propagate import propagate
from crane_kernels.prune_edges import prune_edges
from crane_kernels.recursive_cross_modal_attention import recursive_cross_modal_attention
from crane_kernels.sample_negatives import sample_negatives
from crane_kernels.sparse_mm import sparse_mm
from crane_kernels.spmm import spmm

__all__ = [
    "Graph",
    "accelerate",
    "accelerated",
    "bpr_loss",
    "info_nce",
    "knn_graph",
    "masked_topk",
    "modality_attention",
    "propagate",
    "prune_edges",
    "recursive_cross_modal_attention",
    "sample_negatives",
    "sparse_mm",
    "spmm",
    "tune_memory",
    "use_implementation",
]

dispatch.load_environment()
