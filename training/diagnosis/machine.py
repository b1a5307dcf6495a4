"""Checks of one machine. Each returns what it found; none changes anything but a test file that it takes away."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from packaging.requirements import Requirement

from model.hardware.devices import Devices, find_devices
from model.hardware.precision import choose_precision
from training.diagnosis.findings import Finding, bad, good, note

PINNED = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "tensorboard")
# Where one of these can be imported, DeepSpeed takes the old backend or the old extension instead of torch's own.
OBSOLETE = ("oneccl_bind_pt", "oneccl-bindings-for-pytorch", "intel-extension-for-pytorch", "intel_extension_for_pytorch")
STALE_LOCK_SECONDS = 600
PROBE_BYTES = 64 << 20
SLOW_BYTES_PER_SECOND = 50e6


def check_machine(folder: Path, environment: Mapping[str, str]) -> list[Finding]:
    """All checks of the machine this runs on, in the order in which their causes come before their effects."""
    checks: list[Callable[[], Finding]] = [
        check_python,
        check_versions,
        check_obsolete,
        check_devices,
        lambda: check_slots_of_tiles(environment),
        check_precision,
        check_backend,
        check_extension_locks,
        lambda: check_environment_file(Path(environment.get("DS_ENV_FILE", ".deepspeed_env"))),
        check_own_name,
        lambda: check_disk(folder),
        check_shared_memory,
    ]
    return [check() for check in checks]


def check_python() -> Finding:
    """Versions that torch and DeepSpeed are pinned for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
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
        return bad("packages", "; ".join(wrong), "python3 training/launch/environment.py requirements.txt")
    return good("packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PINNED[:2]))


def check_obsolete() -> Finding:
    """Left-overs of the older Intel stack."""
    found = sorted({name for name in OBSOLETE if any(True for _ in importlib.metadata.distributions(name=name))})
    if found:
        said = f"{', '.join(found)} installed: DeepSpeed takes the backend ccl"
        return bad("old Intel packages", said, f".venv/bin/pip uninstall {' '.join(found)}")
    return good("old Intel packages", "none")


def _devices() -> Devices | ValueError:
    try:
        return find_devices()
    except ValueError as error:
        return error


def check_devices() -> Finding:
    """What ranks can be put on."""
    devices = _devices()
    if isinstance(devices, ValueError):
        return bad("devices", str(devices), "unset DS_ACCELERATOR, or install the build of torch for the device")
    return good("devices", str(devices)) if not devices.is_cpu else note("devices", f"{devices}; no accelerator: ranks share cores")


def check_slots_of_tiles(environment: Mapping[str, str]) -> Finding:
    """Whether a tile or a card is a device, which decides the slots of a host."""
    chosen = environment.get("ZE_FLAT_DEVICE_HIERARCHY")
    devices = _devices()
    if isinstance(devices, ValueError) or devices.kind != "xpu":
        return good("tiles", "no xpu device")
    if chosen is None:
        return note("tiles", "ZE_FLAT_DEVICE_HIERARCHY is not set", "COMPOSITE (cards) or FLAT (tiles) in .deepspeed_env (docs/cluster.md)")
    return good("tiles", f"ZE_FLAT_DEVICE_HIERARCHY={chosen}: {devices.count} devices, so slots={devices.count}")


def check_precision() -> Finding:
    """What "auto" will be here."""
    devices = _devices()
    if isinstance(devices, ValueError):
        return note("precision", "not known without a device")
    return good("precision", f"auto is {(choice := choose_precision('auto', devices.kind)).name}, {choice.reason}")


def check_backend() -> Finding:
    """Whether torch can talk between ranks on this kind of device."""
    import torch

    devices = _devices()
    kind = "cpu" if isinstance(devices, ValueError) else devices.kind
    wanted = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}[kind]
    distributed = torch.distributed
    available = distributed.is_available() and getattr(distributed, f"is_{wanted}_available", lambda: False)()
    if available:
        return good("communication", wanted)
    return bad("communication", f"this torch {torch.__version__} has no {wanted}", f"install the build of torch for {kind}")


def check_extension_locks() -> Finding:
    """A build that was killed leaves a lock, and every later build waits for it without a word."""
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))
    locks = [path for path in cache.glob("**/lock") if time.time() - path.stat().st_mtime > STALE_LOCK_SECONDS]
    if locks:
        return bad("compiled operators", f"{len(locks)} stale locks, the first {locks[0]}", f"find {cache} -name lock -delete")
    return good("compiled operators", "no stale lock; the shipped runs compile none")


def check_environment_file(path: Path) -> Finding:
    """DeepSpeed splits every line at "=", and ends at one that has none."""
    if not path.is_file():
        return good("environment file", f"no {path}; `--write-env` writes one")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.count("=") < 1 or line.startswith("#"):
            what = f'"{line}"' if line.strip() else "blank"
            said = f"{path}:{number} is {what}: DeepSpeed ends with a ValueError"
            return bad("environment file", said, "delete the line: only NAME=value may stand there")
    return good("environment file", f"{path}: every line is NAME=value")


def check_own_name() -> Finding:
    """Ranks on other hosts connect to what the host's own name resolves to."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError as error:
        return bad("own name", f"{name} does not resolve ({error.strerror})", "add it to /etc/hosts with its network address")
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        said = f"{name} is {', '.join(addresses)}, a loopback: other hosts cannot connect"
        return note("own name", said, "harmless on one host; else GLOO_SOCKET_IFNAME=<interface> in .deepspeed_env, or mend /etc/hosts")
    return good("own name", f"{name} is {', '.join(addresses)}")


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
