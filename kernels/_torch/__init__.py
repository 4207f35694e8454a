"""What variants of PyTorch's own functions share: torch.compile, and tf32 products."""
