"""What measurements mean: pure statistics and arithmetic on them. Imports nothing that
measures.
"""
