"""With CI=true, a test that is skipped because a package of the system or of Python is missing has failed: CI installs them all (.ci/run).

Such a reason names the command that installs the package, or is pytest.importorskip's.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

REMEDY = "apt-get install"
NOT_IMPORTED = "could not import"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn such a skip into a failure."""
    report = yield
    fail_for_a_missing_package(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that is skipped."""
    report = yield
    fail_for_a_missing_package(report)
    return report


def fail_for_a_missing_package(report: Any) -> None:
    """Of a test or of a file."""
    if os.environ.get("CI") == "true" and report.skipped and any(sign in str(report.longrepr) for sign in (REMEDY, NOT_IMPORTED)):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped although CI must have its packages: {report.longrepr}"
