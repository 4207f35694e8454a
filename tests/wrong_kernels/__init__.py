"""Kernels that look fast and are wrong, one usual way in each file: the checker must refuse every one of them.

A file gives `OP`, `REFUSED_FOR` (words that the refusal must contain) and a function named like the file.
"""
