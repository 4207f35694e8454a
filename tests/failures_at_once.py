"""A pytest plugin (-p tests.failures_at_once): why a test failed, in a line behind its
own, also if the session is cut.
"""

from __future__ import annotations

import pytest

from batchline.bench import texts


def pytest_configure(config):
    if not hasattr(
        config, "workerinput"
    ):  # of pytest-xdist's worker, whose reports go to the process that shows them
        config.pluginmanager.register(_Reasons(config))


class _Reasons:
    def __init__(self, config):
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        if report.failed:
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.write_line(f"  {report.nodeid}: {_reason(report)}")
            terminal.flush()


def _reason(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return texts.clean_line(crash.message if crash else report.longreprtext)
