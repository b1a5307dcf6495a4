"""How many processors there are to compute on, and with how many threads. No torch here: threads are set before torch is imported."""

import os


def usable_processors() -> int:
    """Those this process may use, which in a container or a job, or on a rank that is bound, are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def set_threads(num_processes: int = 1) -> None:
    """What torch's threads read when torch is imported; nothing that is set already is changed."""
    # Threads that wait for each other spin by default. Where anything else runs, they then mostly wait for a core: on two busy cores a
    # 4.5 M model wrote 4 tokens/s with spinning and 150 without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before they sleep they spin for some microseconds (GNU's OpenMP counts rounds): one token of a 124 M model is hundreds of waits that
    # short, and sleeping and waking at each of them took a third of its time on idle cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if num_processes > 1:
        # By itself each process takes all cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_processors() // num_processes)))
