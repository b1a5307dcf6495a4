"""Packages that only some configurations need. What a preparation needs is asked for before any work: `prepare.py`."""

import importlib.util
from typing import Any

from data.documents import DataError

OF_DATA = "-r requirements-data.txt"


class MissingPackageError(DataError):
    """A package is not installed that not every configuration needs."""


def require(package: str, wanted_by: object, install: str = OF_DATA) -> Any:
    """Import a package, or one of its modules.

    Args:
        package: As `import` names it.
        wanted_by: What cannot be done without it, for the message.
        install: What to give to `pip install`.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingPackageError(f"{wanted_by} needs {package.replace('_', '-')}; run: .venv/bin/pip install {install}") from None


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # The package that it is part of is missing.
        return False
