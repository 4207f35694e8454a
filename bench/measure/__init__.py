"""The only part of bench/ that touches torch, Triton, Numba and the machine."""
