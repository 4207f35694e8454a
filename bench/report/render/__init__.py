"""A bench.report.document as text for one place each: a file, a page, a terminal, a
pull request, a CI's test results.
"""
