"""Processes that find torch and DeepSpeed imported: forked from one that lives as long as pytest and has imported both, once.

The imports take longer than most runs of tests. Otherwise what `Forked` starts is a process like any other: a child of pytest's with
arguments, environment and output of its own. Where the imports matter, or what they read from the environment, `processes.start` has
the process make them itself.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from tests import ROOT, processes
from training.launch.process_tree import PR_SET_PDEATHSIG

# Also what torch and we import late.
IMPORTS = ("deepspeed", "torch.distributed.fsdp", "torch.utils.tensorboard", "training.pretrain", "training.run.assembly")
REQUEST_BYTES = 1 << 17
POLL_SECONDS = 0.001


class Forked(subprocess.Popen[Any]):
    """`python -m MODULE ARGUMENTS...` in the checkout, forked. Like what `processes.start` starts, it leads its own group."""

    def __init__(self, module: str, *arguments: str, **options: Any) -> None:
        super().__init__([module, *arguments], cwd=ROOT, **options)

    def _execute_child(self, *given: Any) -> None:
        """In place of Popen's own fork and exec; what it is given is the same in Python 3.11 and 3.12."""
        named = inspect.signature(super()._execute_child).bind(*given).arguments  # type: ignore[misc]
        request = {"words": named["args"], "environment": dict(os.environ if named["env"] is None else named["env"])}
        connection = server()
        socket.send_fds(connection, [json.dumps(request).encode()], [named["c2pwrite"], named["errwrite"]])
        self.pid = int(connection.recv(REQUEST_BYTES))
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(named[end] for end in ends))  # type: ignore[attr-defined]


@functools.cache
def server() -> socket.socket:
    """Start the process that forks; returns the way to it. It ends with pytest."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
    with theirs:
        process = processes.start(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    processes.KEPT.add(process.pid)
    return ours


def import_all() -> None:
    """What the ranks of a run import."""
    from training.run.assembly import LATE_IMPORTS

    for name in (*IMPORTS, *LATE_IMPORTS):
        importlib.import_module(name)


def serve(connection: socket.socket) -> None:
    """Import, and fork for every request. Returns in what was forked, and when pytest has gone."""
    tester = os.getppid()
    import_all()
    gc.freeze()  # Nothing of it is garbage: what is forked need not look through it at its end, which took a second.
    while True:
        message, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
        if not message:
            return
        if child := fork_orphan():
            connection.send(str(child).encode())
            for file in files:
                os.close(file)
            continue
        while os.getppid() != tester:
            time.sleep(POLL_SECONDS)
        connection.close()
        become(files, **json.loads(message))
        return


def fork_orphan() -> int:
    """Like `os.fork`, but the child leads a session and comes to pytest, which takes in orphans (processes.py)."""
    reading, writing = os.pipe()
    if middle := os.fork():
        os.close(writing)
        with open(reading, encoding="utf-8") as told:
            child = int(told.read())
        os.waitpid(middle, 0)  # Only then the child is an orphan, which pytest can wait for.
        return child
    os.close(reading)
    if child := os.fork():
        os.write(writing, str(child).encode())
        os._exit(0)
    os.close(writing)
    os.setsid()
    return 0


def become(files: list[int], words: list[str], environment: dict[str, str]) -> None:
    """Be the module that was asked for; `files` are its output and its errors."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ |= environment
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
