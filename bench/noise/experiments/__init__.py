"""Measurements that train or time the workloads, each a function from what to measure
to rows.
"""
