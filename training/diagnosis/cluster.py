"""Checks across the hosts of a hostfile, over ssh, as DeepSpeed's launcher will use them.

python -m training.diagnosis.cluster TOKEN_FILE      # on each host: one line of JSON
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.hardware.devices import Devices
from training.diagnosis.findings import Finding, bad, good, note
from training.diagnosis.machine import devices_here, names_passed_on
from training.launch.world import is_loopback, own_addresses
from training.run_folder.provenance import software
from training.supervision.hosts import Host, Pool, answering, on_each

# An import of torch from a shared disk that is cold.
REPORT_SECONDS = 120
CLOCK_SECONDS = 5.0


def report(token: Path) -> dict[str, Any]:
    """What a host says of itself."""
    devices = devices_here()
    return {
        "loopback": is_loopback(own_addresses()),
        "token": token.read_text(encoding="utf-8") if token.exists() else "",
        "software": software(),
        "devices": None if isinstance(devices, ValueError) else dataclasses.asdict(devices),
        "time": time.time(),
    }


def check_hosts(pool: Pool, folder: Path, ssh_options: Sequence[str] = ()) -> list[Finding]:
    """Ask every host of a hostfile, spares too, and compare what they say.

    Args:
        pool: The hosts.
        folder: Where runs go; it must be shared.
        ssh_options: As the launcher is given them.
    """
    findings = [_pdsh(pool)]
    answers = answering(pool.all, ssh_options)
    silent = [name for name, answered in answers.items() if not answered]
    if silent:
        said = f"{', '.join(silent)}: no answer, or this folder is not there"
        findings.append(bad("ssh", said, f"this must work without a password: ssh {silent[0]} 'cd {Path.cwd()}'"))
    else:
        findings.append(good("ssh", f"{len(answers)} hosts answer and see {Path.cwd()}"))
    there = [host for host in pool.all if answers[host.name]]
    if not there:
        return findings
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".seen-{uuid.uuid4().hex}"
    token.write_text(token.name, encoding="utf-8")
    try:
        before = time.time()
        reports = on_each(there, [sys.executable, "-m", "training.diagnosis.cluster", str(token.absolute())], ssh_options, REPORT_SECONDS)
        window = (before, time.time())
    finally:
        token.unlink()
    return findings + compare(there, reports, token.name, window) + check_names(there, reports)


def _read(said: str | None) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(said or "{}")
    return report


def check_names(hosts: Sequence[Host], said: Mapping[str, str | None]) -> list[Finding]:
    """Ranks on CPUs wait for their peers at the address of the own name; two hosts with a loopback there cannot connect."""
    reports = {host.name: _read(said[host.name]) for host in hosts}
    loopback = [name for name, one in reports.items() if one.get("loopback")]
    if not loopback or len(hosts) == 1:
        return []
    found = f"{', '.join(loopback)}: the own name is a loopback address"
    fix = "its network address in /etc/hosts, or GLOO_SOCKET_IFNAME=<interface> in .deepspeed_env"
    named = "GLOO_SOCKET_IFNAME" in names_passed_on(os.environ)
    on_cpus = any((reports[name]["devices"] or {}).get("kind") == "cpu" for name in loopback)
    return [bad("names", found, fix) if len(loopback) > 1 and on_cpus and not named else note("names", found, fix)]


def compare(hosts: Sequence[Host], said: Mapping[str, str | None], token: str, window: tuple[float, float]) -> list[Finding]:
    """What the hosts' reports say together."""
    reports = {host.name: _read(said[host.name]) for host in hosts}
    findings = []
    mute = [name for name, one in reports.items() if not one]
    if mute:
        findings.append(bad("reports", f"{', '.join(mute)}: .venv does not run there", f"ssh {mute[0]} {sys.executable} -c 'import torch'"))
    reports = {name: one for name, one in reports.items() if one}
    checks: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], str, str], ...] = (
        (
            "shared folder",
            lambda one: one["token"] == token,
            "a file just written to the run's directory is not seen",
            "run.directory must be on a path all hosts share",
        ),
        (
            "clocks",
            lambda one: window[0] - CLOCK_SECONDS < one["time"] < window[1] + CLOCK_SECONDS,
            f"off by more than {CLOCK_SECONDS:.0f} s",
            "start a time service (chrony, ntpd)",
        ),
    )
    for check, holds, what, fix in checks:
        wrong = [name for name, one in reports.items() if not holds(one)]
        findings.append(bad(check, f"{', '.join(wrong)}: {what}", fix) if wrong else good(check, "the same everywhere"))
    software = {tuple(one["software"]) for one in reports.values()}
    shown = " / ".join(", ".join(one) for one in sorted(software))
    findings.append(good("software", shown) if len(software) == 1 else bad("software", f"differs: {shown}", "all hosts must use one .venv"))
    for host in hosts:
        one = reports.get(host.name)
        devices = Devices(**one["devices"]) if one and one["devices"] else None
        if devices and not devices.is_cpu and devices.count != host.slots:
            found = f"{host.name}: slots={host.slots}, but {devices}"
            findings.append(bad("slots", found, "make them equal in the hostfile, or see ZE_FLAT_DEVICE_HIERARCHY"))
    if not any(one.check == "slots" for one in findings):
        findings.append(good("slots", f"{sum(host.slots for host in hosts)} on {len(hosts)} hosts"))
    return findings


def _pdsh(pool: Pool) -> Finding:
    if len(pool.all) == 1 and pool.all[0].is_here:
        return good("pdsh", "not needed on one host")
    if shutil.which("pdsh") is None:
        return bad(
            "pdsh",
            "not on PATH: DeepSpeed's launcher needs it",
            "install pdsh, or start with mpiexec or srun (docs/cluster.md)",
        )
    return good("pdsh", str(shutil.which("pdsh")))


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]))))
