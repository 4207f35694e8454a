"""Kernels that look fast and are wrong, or that would take a run with them, one usual way in each file.

A file gives `OP`, `REFUSED_FOR` (words that the refusal must contain) and a function named like the file. Those that
give a `STATUS` are caught by isolation or by the floor, in a worker process; the checker must refuse all the others.
"""
