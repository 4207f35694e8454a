"""The variants' compiled PTX, executed on the CPU instruction by instruction."""
