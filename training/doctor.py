"""Find what is wrong with this machine, or with the hosts of a hostfile, before a job is started; each finding with the way out.

    .venv/bin/python -m training.doctor
    .venv/bin/python -m training.doctor --hostfile hostfiles/32nodes
    .venv/bin/python -m training.doctor --write-env        # an example of DeepSpeed's environment file

Exit code 0 if nothing is bad, 1 if something is, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from training.diagnosis.cluster import check_hosts
from training.diagnosis.findings import table
from training.diagnosis.machine import check_machine
from training.supervision.hosts import read_pool

# Of these the launcher passes none on by itself; without OMP_NUM_THREADS every rank on a CPU starts as many threads as there are cores.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "DS_ACCELERATOR", "ZE_FLAT_DEVICE_HIERARCHY", "GLOO_SOCKET_IFNAME")
PREFIXES = ("CCL_", "FI_", "I_MPI_", "NCCL_")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m training.doctor", description="Find what is wrong before a job does.")
    parser.add_argument("--hostfile", help="check its hosts too, over ssh")
    parser.add_argument("--ssh-port", help="where sshd listens, as for deepspeed --ssh_port")
    parser.add_argument("--directory", default="runs", help="where runs are written (runs)")
    parser.add_argument("--write-env", action="store_true", help="write .deepspeed_env from this shell's variables, if there is none")
    options = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
    try:
        if options.write_env:
            print(write_environment_file(Path(os.environ.get("DS_ENV_FILE", ".deepspeed_env"))))
            return 0
        pool = read_pool(Path(options.hostfile)) if options.hostfile else None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    findings = check_machine(Path(options.directory), os.environ)
    if pool:
        findings += check_hosts(pool, Path(options.directory), ["-p", options.ssh_port] if options.ssh_port else [])
    print(table(findings))
    wrong = sum(one.state == "bad" for one in findings)
    print(f"\n{wrong} of {len(findings)} checks found something to mend." if wrong else f"\n{len(findings)} checks, nothing to mend.")
    return 1 if wrong else 0


def write_environment_file(path: Path) -> str:
    """Write what a shell in which a run works has set, one NAME=value a line.

    Raises:
        ValueError: If the file exists.
    """
    if path.exists():
        raise ValueError(f"{path} exists. Delete it first, or edit it: one NAME=value a line, no blank line.")
    chosen = {name: value for name, value in sorted(os.environ.items()) if name in PASSED_ON or name.startswith(PREFIXES)}
    lines = [f"{name}={value}" for name, value in chosen.items() if "\n" not in value]
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{path}: {', '.join(chosen)}"


if __name__ == "__main__":
    sys.exit(main())
