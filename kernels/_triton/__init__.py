"""What Triton variants of several ops share: the tiled product, which of its tiles are worth a launch, and sums over a
tile's rows.
"""
