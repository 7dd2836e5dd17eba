"""Kernels for NVIDIA GPUs, in Triton. Imported only where they are used: not every platform has Triton."""
