"""The operations as modules."""

from crane_kernels.nn.modality_attention import ModalityAttention

__all__ = ["ModalityAttention"]
