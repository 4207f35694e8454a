"""How kernels are measured, judged and shown. `python -m bench` is the way in."""
