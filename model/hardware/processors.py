"""How many processors there are to compute on, and with how many threads. No torch here: threads are set before torch is imported."""

import contextlib
import math
import os
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_processors() -> int:
    """Those this process may use, which in a container or a job, or on a rank that is bound, are fewer than the machine has."""
    return min(len(os.sched_getaffinity(0)), shared_processors())


def shared_processors() -> int:
    """Those that all processes of this machine or container have together.

    A container with a limit (`docker --cpus`, Kubernetes) sees all processors of its machine, and is stopped for the rest of each tenth of
    a second once its threads have used up what control groups grant (docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`).
    """
    processors: float = os.cpu_count() or 1
    lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.exists() else []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        mounted = CONTROL_GROUPS / controllers  # Version 2 names no controllers.
        group = mounted / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mounted):
                break
            with contextlib.suppress(OSError, ValueError):  # No such limit, or "max".
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
                quota, period = map(int, " ".join((folder / file).read_text(encoding="utf-8") for file in files).split())
                processors = min(processors, quota / period if quota > 0 else math.inf)
    return math.ceil(processors)


def set_threads(num_processes: int = 1) -> None:
    """What torch's threads read when torch is imported; nothing that is set already is changed."""
    # Threads that wait for each other spin by default. Where anything else runs, they then mostly wait for a core: on two busy cores a
    # 4.5 M model wrote 4 tokens/s with spinning and 150 without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before they sleep they spin for some microseconds (GNU's OpenMP counts rounds): one token of a 124 M model is hundreds of waits that
    # short, and sleeping and waking at each of them took a third of its time on idle cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    usable = usable_processors()
    if num_processes > 1 or usable < len(os.sched_getaffinity(0)):
        # By itself each process takes all cores that it sees.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable // num_processes)))
