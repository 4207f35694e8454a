"""PyTorch's own variants that need CUDA: (op, variant, dtype), each tried on the
stand-in.
"""

ON_TENSOR_CORES = [
    *(
        ("bmm", name, dtype)
        for name, dtype in (
            ("torch_bmm_out", "float32"),
            ("torch_bmm_tf32", "float32"),
            ("torch_grouped_mm", "bfloat16"),
            ("torch_scaled_grouped_mm", "float8_e4m3fn"),
            ("torch_scaled_mm", "float8_e4m3fn"),
            ("torch_upcast", "float8_e4m3fn"),
        )
    ),
    *(
        ("wgrad_stats", f"torch_{way}_{how}", dtype)
        for way in ("ghost", "rank_one")
        for how in ("tf32", "3xbf16")
        for dtype in ("bfloat16", "float16")
    ),
    *(
        ("wgrad_stats", name, "float32")
        for name in (
            "torch_ghost_3xbf16",
            "torch_ghost_6xbf16",
            "torch_rank_one_3xbf16",
        )
    ),
]
