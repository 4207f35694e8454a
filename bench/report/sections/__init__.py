"""What a run, and the findings on it, say: each function gives one section of a report
as data (bench.report.document), or None where there is nothing to say.
"""
