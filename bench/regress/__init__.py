"""The gate on regressions: two revisions measured against each other in pairs of
processes, on one machine.
"""
