"""Find what is wrong with this machine, or with the hosts of a hostfile, before a job is started; each finding with the way out.

    .venv/bin/python -m training.doctor
    .venv/bin/python -m training.doctor --hostfile hostfiles/32nodes
    .venv/bin/python -m training.doctor --hostfile hostfiles/32nodes --links CONFIG      # ranks are started, and every link is used
    .venv/bin/python -m training.doctor --write-env        # an example of DeepSpeed's environment file

Exit code 0 if nothing is bad, 1 if something is, 2 for a mistake.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_configs.commands import command
from training.diagnosis.cluster import check_hosts
from training.diagnosis.findings import note, table
from training.diagnosis.links import check_links, config_for
from training.diagnosis.machine import check_machine
from training.supervision.hosts import read_pool

# Of these the launcher passes none on by itself; without OMP_NUM_THREADS every rank on a CPU starts as many threads as there are cores.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "DS_ACCELERATOR", "ZE_FLAT_DEVICE_HIERARCHY", "GLOO_SOCKET_IFNAME")
PREFIXES = ("CCL_", "FI_", "I_MPI_", "NCCL_")
# Options that say something of what others ask for.
BOTH = {"hostfile", "links"}
NEEDED = {"ssh_port": {"hostfile"}, "master_addr": BOTH, "master_port": BOTH, "mebibytes": {"links"}, "limit_seconds": {"links"}}
# With one of these found, ranks would not start, or the launcher would say it less clearly.
BEFORE_LINKS = {"pdsh", "ssh", "reports", "environment file", "devices", "communication", "slots", "software"}


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m training.doctor", description="Find what is wrong before a job does.")
    parser.add_argument("--hostfile", help="check its hosts too, over ssh")
    parser.add_argument("--ssh-port", help="where sshd listens, as for deepspeed --ssh_port")
    parser.add_argument("--directory", default="runs", help="where runs are written (runs)")
    parser.add_argument("--write-env", action="store_true", help="write .deepspeed_env from this shell's variables, if there is none")
    links = parser.add_argument_group("links: start ranks as the run does, let them talk, and measure (nothing is trained)")
    links.add_argument("--links", nargs="+", metavar=("CONFIG", "dotted.key=value"), help="the run whose stages and precision count")
    links.add_argument("--master-addr", help="as for deepspeed --master_addr")
    links.add_argument("--master-port", help="as for deepspeed --master_port")
    links.add_argument("--mebibytes", type=int, default=64, help="what is sent at a time to measure (64)")
    links.add_argument("--limit-seconds", type=float, default=60.0, help="without a step of any rank, after which it is over (60)")
    options = parser.parse_args(list(arguments))
    given = {name for name in vars(options) if getattr(options, name) != parser.get_default(name)}
    for name in sorted(given - {"write_env"}):
        option = f"--{name.replace('_', '-')}"
        if options.write_env:
            parser.error(f"{option}: without effect: --write-env checks nothing")
        if missing := sorted(NEEDED.get(name, set()) - given):
            parser.error(f"{option}: without effect without --{' and --'.join(missing)}")
    return options


@command()
def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    options = parse_options(arguments)
    if options.write_env:
        print(write_environment_file(Path(os.environ.get("DS_ENV_FILE", ".deepspeed_env"))))
        return 0
    pool = read_pool(Path(options.hostfile)) if options.hostfile else None
    if options.mebibytes < 1 or not options.limit_seconds >= 1:
        raise ValueError("--mebibytes and --limit-seconds must be 1 or more.")
    config, hosts = config_for(options.links[0], options.links[1:], pool) if options.links else (None, ())
    findings = check_machine(Path(options.directory), os.environ)
    if pool:
        findings += check_hosts(pool, Path(options.directory), options.ssh_port)
    speeds = ""
    in_the_way = [one.check for one in findings if one.state == "bad" and one.check in BEFORE_LINKS]
    if config and in_the_way:
        findings.append(note("links", f"not tried: first mend {', '.join(dict.fromkeys(in_the_way))}"))
    elif config:
        # So that whatever ends this command ends the ranks on all hosts too.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        more, speeds = check_links(options, config, hosts)
        findings += more
    print(table(findings))
    if speeds:
        print(f"\n{speeds}")
    wrong = sum(one.state == "bad" for one in findings)
    print(f"\n{wrong} of {len(findings)} checks found something to mend." if wrong else f"\n{len(findings)} checks, nothing to mend.")
    return 1 if wrong else 0


def write_environment_file(path: Path) -> str:
    """Write what a shell in which a run works has set, one NAME=value a line.

    Raises:
        ValueError: If the file exists, or cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists. Delete it first, or edit it: one NAME=value a line, no blank line.")
    chosen = {name: value for name, value in sorted(os.environ.items()) if name in PASSED_ON or name.startswith(PREFIXES)}
    lines = {name: f"{name}={value}" for name, value in chosen.items() if "\n" not in value}
    left_out = [name for name in chosen if name not in lines]
    try:
        path.write_text("\n".join(lines.values()), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}). DS_ENV_FILE names another file.") from None
    return f"{path}: {', '.join(lines)}" + (f"; left out, as a line holds one value: {', '.join(left_out)}" if left_out else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
