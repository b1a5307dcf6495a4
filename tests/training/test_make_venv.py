"""`.venv` from nothing, with packages from a folder: interrupted, without the packages, and at last complete."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest

from tests import processes
from training import make_venv


@pytest.fixture
def start(tmp_path, root):
    """Begin to make the environment of a checkout that asks for one tiny package."""
    (tmp_path / "checkout/training/launch").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    for name in ("make_venv.py", "launch/process_tree.py"):
        shutil.copy(root / "training" / name, tmp_path / "checkout/training" / name)
    (tmp_path / "checkout/requirements.txt").write_text("tiny_package==1.0\n", encoding="utf-8")
    started = []

    def begin():
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "PIP_CONFIG_FILE": os.devnull}
        command = [sys.executable, "training/make_venv.py", "requirements.txt"]
        started.append(
            processes.start(
                command, cwd=tmp_path / "checkout", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return started[-1]

    yield begin
    for process in started:
        processes.end(process)


def make_wheel(folder):
    """The smallest wheel there is."""
    with zipfile.ZipFile(folder / "tiny_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_package.py", "ANSWER = 42\n")
        wheel.writestr("tiny_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny_package\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_package-1.0.dist-info/RECORD", "")


@pytest.mark.parametrize("names", [["requirements.txt", "nowhere.txt"], ["--help"], []])
def test_files_of_requirements_that_are_not_there_are_a_mistake_in_one_line(capsys, names):
    assert make_venv.main(names) == 2
    said = f'environment: "{names[-1] if names else ""}" is not a file in {make_venv.ROOT}. Name files of requirements there, such as'
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.processes
def test_an_environment_made_from_nothing_survives_interruption_and_missing_packages(start, tmp_path):
    venv = tmp_path / "checkout/.venv"
    first = start()
    processes.wait_until(lambda: (venv / "bin/python").exists() or first.poll() is not None, "its Python")
    os.killpg(first.pid, signal.SIGKILL)  # Its Python is there, pip is not yet.
    first.communicate()
    assert subprocess.run([venv / "bin/python", "-c", "import pip"], capture_output=True, check=False).returncode != 0

    second = start()
    output, _ = second.communicate(timeout=processes.LIMIT_SECONDS)
    assert second.returncode == 2
    assert "environment: making .venv" in output, "the broken one is not used"
    assert "environment: pip could not install the packages; its lines above say why." in output
    assert not (venv / "stamp").exists()

    make_wheel(tmp_path / "wheels")
    third = start()
    output, _ = third.communicate(timeout=processes.LIMIT_SECONDS)
    assert third.returncode == 0, output
    assert "making .venv" not in output, "what is whole is kept"
    answer = subprocess.run([venv / "bin/python", "-c", "import tiny_package; print(tiny_package.ANSWER)"], capture_output=True, check=True)
    assert answer.stdout == b"42\n"
    fourth = start()
    assert fourth.communicate(timeout=processes.LIMIT_SECONDS)[0] == "", "nothing to do and nothing to say"
    assert fourth.returncode == 0


@pytest.mark.processes
def test_an_environment_whose_python_is_gone_is_made_anew(start, tmp_path):
    make_wheel(tmp_path / "wheels")
    assert start().wait(timeout=processes.LIMIT_SECONDS) == 0
    python = tmp_path / "checkout/.venv/bin/python"
    python.unlink()
    python.symlink_to(tmp_path / "uninstalled")
    again = start()
    output, _ = again.communicate(timeout=processes.LIMIT_SECONDS)
    assert again.returncode == 0, output
    assert "making .venv" in output
    assert subprocess.run([python, "-c", "import tiny_package"], check=False).returncode == 0


def test_a_checkout_that_cannot_be_written_is_named_in_one_line(start, tmp_path):
    (tmp_path / "checkout/.venv.lock").mkdir()  # As root may write anywhere, what cannot be opened stands in for a read-only folder.
    process = start()
    output, _ = process.communicate(timeout=processes.LIMIT_SECONDS)
    assert process.returncode == 2
    lock = tmp_path / "checkout/.venv.lock"
    assert output.startswith(
        f"environment: {lock}: Is a directory. .venv is missing or incomplete; who may write in {tmp_path / 'checkout'}"
    )


def test_packages_of_another_place_that_python_finds_first_are_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *to_what: None)
    make_venv.start(["nowhere.txt"])
    assert f"environment: PYTHONPATH puts {tmp_path / 'torch'} before what .venv has. Unset it" in capsys.readouterr().err
