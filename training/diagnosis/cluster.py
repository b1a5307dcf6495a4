"""Checks across the hosts of a hostfile, over ssh, as DeepSpeed's launcher will use them.

python -m training.diagnosis.cluster TOKEN_FILE      # on each host: one line of JSON
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.hardware.devices import Devices, find_devices
from training.diagnosis.findings import Finding, bad, good, note
from training.diagnosis.machine import names_passed_on
from training.launch.world import is_loopback, own_addresses
from training.run_folder.provenance import software
from training.supervision.hosts import Host, Pool, answering, on_each

# An import of torch from a shared disk that is cold.
REPORT_SECONDS = 120
CLOCK_SECONDS = 5.0


def report(token: Path) -> dict[str, Any]:
    """What a host says of itself."""
    devices = None
    with contextlib.suppress(ValueError):
        devices = dataclasses.asdict(find_devices())
    return {
        "loopback": is_loopback(own_addresses()),
        "token": token.read_text(encoding="utf-8") if token.exists() else "",
        "software": software(),
        "devices": devices,
        "time": time.time(),
    }


def check_hosts(pool: Pool, folder: Path, ssh_port: str | None = None) -> list[Finding]:
    """Ask every host of a hostfile, spares too, and compare what they say.

    Args:
        pool: The hosts.
        folder: Where runs go; it must be shared.
        ssh_port: As the launcher is given it.
    """
    findings = [_pdsh(pool)]
    answers = answering(pool.all, ssh_port)
    silent = [name for name, answered in answers.items() if not answered]
    if silent:
        said = f"{', '.join(silent)}: no answer, or this folder is not there"
        findings.append(bad("ssh", said, f"this must work without a password: ssh {silent[0]} 'cd {Path.cwd()}'"))
    else:
        findings.append(good("ssh", f"{len(answers)} hosts answer and see {Path.cwd()}"))
    there = [host for host in pool.all if answers[host.name]]
    token = folder / f".seen-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text(token.name, encoding="utf-8")
    except OSError as error:
        said = f"{folder} cannot be written here ({error.strerror})"
        return [*findings, bad("shared folder", said, "run.directory=... names another place, --directory for this command")]
    try:
        before = time.time()
        printed = on_each(there, [sys.executable, "-m", "training.diagnosis.cluster", str(token.absolute())], ssh_port, REPORT_SECONDS)
        window = (before, time.time())
    finally:
        token.unlink()
    reports: dict[str, Any] = {}
    for name, line in printed.items():
        with contextlib.suppress(ValueError):  # Nothing, or the last word of something else, which may be JSON too.
            if isinstance(report := json.loads(line or ""), dict):
                reports[name] = report
    mute = [name for name in printed if name not in reports]
    if mute:
        findings.append(bad("reports", f"{', '.join(mute)}: .venv does not run there", f"ssh {mute[0]} {sys.executable} -c 'import torch'"))
    return [*findings, *compare(there, reports, token.name, window)] if reports else findings


def compare(hosts: Sequence[Host], reports: Mapping[str, Mapping[str, Any]], token: str, window: tuple[float, float]) -> list[Finding]:
    """What the hosts' reports, by name, say together."""
    blind = [name for name, one in reports.items() if one["token"] != token]
    off = [name for name, one in reports.items() if not window[0] - CLOCK_SECONDS < one["time"] < window[1] + CLOCK_SECONDS]
    unseen = "a file just written to the run's directory is not seen"
    findings = [
        _same("shared folder", blind, unseen, "run.directory must be on a path all hosts share"),
        _same("clocks", off, f"off by more than {CLOCK_SECONDS:.0f} s", "start a time service (chrony, ntpd)"),
    ]
    software = {tuple(one["software"]) for one in reports.values()}
    shown = " / ".join(", ".join(one) for one in sorted(software))
    findings.append(good("software", shown) if len(software) == 1 else bad("software", f"differs: {shown}", "all hosts must use one .venv"))
    kinds = {name: Devices(**one["devices"]) for name, one in reports.items() if one["devices"]}
    slots = [
        bad("slots", f"{host.name}: slots={host.slots}, but {devices}", "make them equal in the hostfile, or see ZE_FLAT_DEVICE_HIERARCHY")
        for host in hosts
        if (devices := kinds.get(host.name)) and not devices.is_cpu and devices.count != host.slots
    ]
    findings += slots or [good("slots", f"{sum(host.slots for host in hosts)} on {len(hosts)} hosts")]
    # Ranks on CPUs wait for their peers at the address of the own name; two hosts with a loopback there cannot connect.
    loopback = [name for name, one in reports.items() if one["loopback"]]
    if loopback and len(hosts) > 1:
        named = "GLOO_SOCKET_IFNAME" in names_passed_on(os.environ)
        on_cpus = any(name in kinds and kinds[name].is_cpu for name in loopback)
        how = bad if len(loopback) > 1 and on_cpus and not named else note
        fix = "its network address in /etc/hosts, or GLOO_SOCKET_IFNAME=<interface> in .deepspeed_env"
        findings.append(how("names", f"{', '.join(loopback)}: the own name is a loopback address", fix))
    return findings


def _same(check: str, wrong: Sequence[str], what: str, fix: str) -> Finding:
    return bad(check, f"{', '.join(wrong)}: {what}", fix) if wrong else good(check, "the same everywhere")


def _pdsh(pool: Pool) -> Finding:
    if len(pool.all) == 1 and pool.all[0].is_here:
        return good("pdsh", "not needed on one host")
    if found := shutil.which("pdsh"):
        return good("pdsh", found)
    return bad("pdsh", "not on PATH: DeepSpeed's launcher needs it", "install pdsh, or start with mpiexec or srun (docs/cluster.md)")


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]))))
