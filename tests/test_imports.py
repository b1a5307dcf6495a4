"""Who may import whom (docs/architecture.md), read from the source without running it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

ALLOWED = {
    "ds_configs": set(),
    "model": {"ds_configs"},
    "data": {"ds_configs"},
    "training": {"ds_configs", "model", "data"},
    "inference": {"ds_configs", "model", "data"},
}
# The command checks sections with the code of the packages that own them.
ALSO_ALLOWED = {"ds_configs/__main__.py": {"training", "model"}}
# What a published checkpoint is, training knows; whoever reads a run asks it. The module imports nothing else of training.
CHECKPOINTS = "training.checkpoints.find_and_verify"
READS_RUNS = [path.relative_to(ROOT).as_posix() for path in (ROOT / "inference").rglob("*.py")] + ["data/inspect.py"]
FRAMEWORKS = {"torch", "deepspeed", "transformers", "numpy"}
# Start-up and `check` read these; a framework's import takes seconds.
LIGHT = [
    "ds_configs",
    "data/config.py",
    "model/config.py",
    "model/families.py",
    "model/flops.py",
    "model/partition.py",
    "training/config.py",
    "training/checkpoints/find_and_verify.py",
]

FILES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imported(path: Path, nested: bool = True) -> Iterator[tuple[str, int]]:
    """(full module name, line) of every import; with `nested` false only what importing the file runs."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in (
        ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if nested else _at_import(ast.parse(path.read_text(encoding="utf-8")))
    ):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # A name may be a module too: "from model import flops".
            yield from ((name, node.lineno) for name in (module, *(f"{module}.{alias.name}" for alias in node.names)))


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: not inside functions, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_import(node)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_package_imports_only_the_packages_it_may(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = ALLOWED[package] | ALSO_ALLOWED.get(name(path), set()) | {package}
    wrong = [
        (module, line)
        for module, line in imported(path)
        if module.split(".")[0] in set(ALLOWED) - allowed and not (name(path) in READS_RUNS and f"{module}.".startswith(f"{CHECKPOINTS}."))
    ]
    assert not wrong, f"{name(path)} imports {wrong}; it may import {sorted(allowed)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_package_imports_tests_benchmarks_or_anything_called_utils(path):
    assert not [module for module, _ in imported(path) if module.split(".")[0] in ("tests", "benchmarks")]
    assert not {"utils", "common", "helpers"} & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "ds_configs")], ids=name)
def test_ds_configs_needs_the_standard_library_only(path):
    others = {module.split(".")[0] for module, _ in imported(path)} - sys.stdlib_module_names - {"ds_configs"}
    assert others <= ALSO_ALLOWED.get(name(path), set())


def test_what_knows_a_published_checkpoint_needs_nothing_else_of_training():
    path = ROOT.joinpath(*CHECKPOINTS.split(".")).with_suffix(".py")
    assert not [module for module, _ in imported(path) if module.split(".")[0] == "training"]


@pytest.mark.parametrize("start", LIGHT)
def test_reading_a_configuration_imports_no_framework(start):
    """Follows our own imports from each light module, so that a heavy one cannot come in at second hand."""
    queue = sorted((ROOT / start).rglob("*.py")) if (ROOT / start).is_dir() else [ROOT / start]
    seen: set[Path] = set()
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for module, line in imported(path, nested=False):
            assert module.split(".")[0] not in FRAMEWORKS, f"{start}: {name(path)}:{line} imports {module}"
            queue += _files(module)


@pytest.mark.parametrize("start", sorted((ROOT / "data" / "batches").glob("*.py")), ids=name)
def test_what_makes_batches_imports_nothing_that_reads_raw_files(start):
    """Ranks open stores and never touch the text: follows all imports, those inside functions too."""
    raw = ("data.reading", "data.corpora", "data.cleaning", "data.steps")
    queue, seen = [start], set()
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for module, line in imported(path):
            assert not any(module == room or module.startswith(f"{room}.") for room in raw), f"{name(path)}:{line} imports {module}"
            queue += _files(module)
    assert ROOT / "data/store/token_store.py" in seen or start.name in ("__init__.py", "permutation.py"), "the imports were followed"


def _files(module: str) -> list[Path]:
    """The files that importing one of our modules runs: its packages' __init__ and itself."""
    parts = module.split(".")
    if parts[0] not in ALLOWED:
        return []
    candidates = [ROOT.joinpath(*parts[:length], "__init__.py") for length in range(1, len(parts) + 1)]
    candidates.append(ROOT.joinpath(*parts).with_suffix(".py"))
    return [path for path in candidates if path.is_file()]


def test_deepspeed_is_imported_in_data_by_the_store_alone():
    users = {name(path) for path in FILES if any(module.split(".")[0] == "deepspeed" for module, _ in imported(path))}
    assert {user for user in users if user.startswith("data/")} <= {"data/store/token_store.py"}
    assert {user for user in users if user.startswith("model/")} <= {"model/pipeline.py"}


def test_transformers_is_imported_in_inference_alone():
    users = {name(path) for path in FILES if any(module.split(".")[0] == "transformers" for module, _ in imported(path))}
    assert {user for user in users if not user.startswith("inference/")} == set()
