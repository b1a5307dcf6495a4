"""How many processors there are to compute on. No torch here: threads are set before torch is imported."""

import os


def usable_processors() -> int:
    """Those this process may use, which in a container or a job, or on a rank that is bound, are fewer than the machine has."""
    return len(os.sched_getaffinity(0))
