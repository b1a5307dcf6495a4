"""Checks of one machine. Each returns what it found; none changes anything but a test file that it takes away."""

import importlib.metadata
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from packaging.requirements import Requirement

from model.hardware.devices import TILES_OR_CARDS, Devices, find_devices
from model.hardware.precision import choose_precision
from training.diagnosis.findings import Finding, bad, good, note
from training.launch.process_group import backend, quiet
from training.launch.world import is_loopback, own_addresses
from training.make_venv import NEWEST, OLDEST, shadows
from training.preflight import build_locks
from training.run_folder.provenance import software

# Where one of these can be imported, DeepSpeed takes the old backend or the old extension instead of torch's own.
OBSOLETE = ("oneccl_bind_pt", "oneccl-bindings-for-pytorch", "intel-extension-for-pytorch")
STALE_LOCK_SECONDS = 600
PROBE_BYTES = 64 << 20
SLOW_BYTES_PER_SECOND = 50e6


def check_machine(folder: Path, environment: Mapping[str, str]) -> list[Finding]:
    """All checks of the machine this runs on, in the order in which their causes come before their effects."""
    return [
        check_python(),
        check_versions(),
        check_python_path(),
        check_obsolete(),
        *check_devices(environment),
        check_extension_locks(),
        check_environment_files(environment),
        check_own_name(),
        check_disk(folder),
        check_shared_memory(),
    ]


def check_python() -> Finding:
    """Versions that torch and DeepSpeed are pinned for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return good("Python", version)
    return bad("Python", version, "use 3.11 or 3.12: PYTHON=/path/to/it ./run_pretrain.sh")


def check_versions() -> Finding:
    """What is installed against requirements.txt."""
    lines = Path("requirements.txt").read_text(encoding="utf-8").splitlines()
    wrong = []
    for requirement in (Requirement(line) for line in lines if line and not line.startswith(("#", "-"))):
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} is {found}, wanted {requirement.specifier}")
    if wrong:
        return bad("packages", "; ".join(wrong), "python3 training/make_venv.py requirements.txt")
    return good("packages", ", ".join(software()[1:]))


def check_python_path() -> Finding:
    """Packages of a cluster's modules in the place of those that were checked."""
    if found := shadows():
        return note("PYTHONPATH", f"{', '.join(found)}: before .venv's", "unset it, unless that is meant")
    return good("PYTHONPATH", "no packages")


def check_obsolete() -> Finding:
    """Left-overs of the older Intel stack."""
    found = sorted({name for name in OBSOLETE if any(True for _ in importlib.metadata.distributions(name=name))})
    if found:
        said = f"{', '.join(found)} installed: DeepSpeed takes the backend ccl"
        return bad("old Intel packages", said, f".venv/bin/pip uninstall {' '.join(found)}")
    return good("old Intel packages", "none")


def check_devices(environment: Mapping[str, str]) -> list[Finding]:
    """The devices, what a device of theirs is, what "auto" will be on them, and how their ranks will talk."""
    try:
        devices = find_devices()
    except ValueError as error:
        return [
            bad("devices", str(error), "unset DS_ACCELERATOR, or install the build of torch for the device"),
            note("precision", "not known without a device"),
            note("communication", "not known without a device"),
        ]
    precision = choose_precision("auto", devices.kind)
    return [
        note("devices", f"{devices}; no accelerator: ranks share cores") if devices.is_cpu else good("devices", str(devices)),
        check_tiles(devices, environment),
        good("precision", f"auto is {precision.name}, {precision.reason}"),
        check_backend(),
    ]


def check_tiles(devices: Devices, environment: Mapping[str, str]) -> Finding:
    """Whether a tile or a card is a device, which decides the slots of a host."""
    if (name := TILES_OR_CARDS.get(devices.kind)) is None:
        return good("tiles", "no device with tiles")
    if name not in environment:
        return note("tiles", f"{name} is not set", "COMPOSITE (cards) or FLAT (tiles) in .deepspeed_env (docs/intel-gpu.md)")
    return good("tiles", f"{name}={environment[name]}: {devices.count} devices, so slots={devices.count}")


def check_backend() -> Finding:
    """Whether torch has what ranks will talk through."""
    with quiet():
        wanted = backend()
    if torch.distributed.is_available() and getattr(torch.distributed, f"is_{wanted}_available", lambda: False)():
        return good("communication", wanted)
    return bad("communication", f"this torch {torch.__version__} has no {wanted}", "install the build of torch for the device")


def check_extension_locks() -> Finding:
    """A build that was killed leaves a lock, and every later build waits for it without a word."""
    locks = [path for path in build_locks() if time.time() - path.stat().st_mtime > STALE_LOCK_SECONDS]
    if locks:
        return bad("compiled operators", f"{len(locks)} stale locks, the first {locks[0]}", f"rm {shlex.join(map(str, locks))}")
    return good("compiled operators", "no stale lock; the shipped runs compile none")


def environment_files(environment: Mapping[str, str]) -> dict[Path, list[str]]:
    """The files in which DeepSpeed finds variables that its launcher passes on, in the home folder and here; U+FFFD is not UTF-8."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    paths = dict.fromkeys([Path.home() / name, Path(name)])  # A name from the root on is both.
    return {path: path.read_text("utf-8", errors="replace").splitlines() for path in paths if path.is_file()}


def names_passed_on(environment: Mapping[str, str]) -> set[str]:
    """The variables in these files. Of a shell's own, the launcher passes on few."""
    return {line.partition("=")[0] for lines in environment_files(environment).values() for line in lines}


def check_environment_files(environment: Mapping[str, str]) -> Finding:
    """DeepSpeed splits every line at "=", and ends at one that has none."""
    said = f"no {environment.get('DS_ENV_FILE', '.deepspeed_env')}; `--write-env` writes one"
    for path, lines in environment_files(environment).items():
        for number, line in enumerate(lines, 1):
            if "\ufffd" in line:
                wrong = f"{path}:{number} is not UTF-8: DeepSpeed ends with a UnicodeDecodeError"
                return bad("environment file", wrong, "write the line anew")
            if "=" not in line or line.startswith("#"):
                what = f'"{line}"' if line.strip() else "blank"
                wrong = f"{path}:{number} is {what}: DeepSpeed ends with a ValueError"
                return bad("environment file", wrong, "delete the line: only NAME=value may stand there")
        said = f"{path}: every line is NAME=value"
    return good("environment file", said)


def check_own_name() -> Finding:
    """Ranks on other hosts connect to what the host's own name resolves to."""
    name, addresses = socket.gethostname(), own_addresses()
    if not addresses:
        return bad("own name", f"{name} does not resolve", "add it to /etc/hosts with its network address")
    said = f"{name} is {', '.join(addresses)}"
    if is_loopback(addresses):
        way = "harmless on one host; else GLOO_SOCKET_IFNAME=<interface> in .deepspeed_env, or mend /etc/hosts"
        return note("own name", f"{said}, a loopback: other hosts cannot connect", way)
    return good("own name", said)


def check_disk(folder: Path) -> Finding:
    """Space and writing speed where runs go."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            start = time.perf_counter()
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            speed = PROBE_BYTES / (time.perf_counter() - start)
    except OSError as error:
        return bad("disk", f"{existing} cannot be written ({error.strerror})", "run.directory=... names another place")
    said = f"{existing}: {free / 1e9:.0f} GB free, {speed / 1e6:.0f} MB/s"
    if speed > SLOW_BYTES_PER_SECOND:
        return good("disk", said)
    return note("disk", said, "slow: save less often; python -m training.plan says how often")


def check_shared_memory() -> Finding:
    """Workers of a preparation, and oneCCL, pass data through it."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if free < 1 << 30:
        return note("shared memory", f"/dev/shm: {free / 1e6:.0f} MB free", "in a container: --shm-size=8g")
    return good("shared memory", f"/dev/shm: {free / 1e9:.0f} GB free")
