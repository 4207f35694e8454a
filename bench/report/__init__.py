"""How a stored run is shown: tables, plots, and the README that holds them. Imports nothing that measures."""
from bench.report.readme import FILE_NAME, markdown, summary, terminal, write

__all__ = ["FILE_NAME", "markdown", "summary", "terminal", "write"]
