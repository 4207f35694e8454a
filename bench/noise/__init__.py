"""Gradient noise from {ḡ, n}: pure arithmetic, on whatever machine."""
