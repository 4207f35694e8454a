"""What Numba CUDA variants share: the launch, instructions of PTX, and sums across a block."""
