"""With CI=true, a test that is skipped because a package of the system is missing has failed: CI installs them all (.ci/run).

Such a reason names the command that installs the package.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REMEDY = "apt-get install"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn such a skip into a failure."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and REMEDY in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped although CI must have its packages: {report.longrepr}"
    return report
