"""What Triton variants of several ops share: the tiled product, and which of its tiles are worth a launch."""
