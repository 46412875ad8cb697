"""The kernels inside models that were written without them."""

from crane_kernels.integrate.accelerate import accelerate, accelerated
from crane_kernels.integrate.report import Left, Replaced, Report

__all__ = ["Left", "Replaced", "Report", "accelerate", "accelerated"]
