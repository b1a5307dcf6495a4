"""Settings of the tests of configurations."""

import pytest

from tests import ROOT


@pytest.fixture
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person starts the commands."""
    monkeypatch.chdir(ROOT)
