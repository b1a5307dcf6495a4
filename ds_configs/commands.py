"""How the commands of every package end: of themselves, by an error, or by a signal. Standard library only.

SIGINT, SIGTERM and SIGUSR1 are seen by a thread of their own, so that a main thread may wait inside C code for a peer or a device. What
one means depends on how far a start has come: `leaving` at once until there is something to save, `training/run/stop_request.py` in a rank
that trains, `training/launch/launcher_process.py` in the process that a person started. The last `listen` counts.
"""

import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str]], int]
# SIGUSR1 is what schedulers are asked to send some time before the end (`sbatch --signal=USR1@120`).
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# One Ctrl-C can arrive twice: from the terminal's process group and from a launcher (or `timeout`) that passes it on.
SAME_PRESS_SECONDS = 0.5


def command(name: str = "", level: int = logging.WARNING) -> Callable[[Main], Main]:
    """For a `main`, which logs from `level` on; `name`, if given, stands before each error. Without it they begin with a file.

    A mistake in what was asked for is told in one line, with exit code 2 (PRETRAIN_TRACEBACK=1 shows the trace, too). Ctrl-C ends the
    command with 130, and a reader of its output that has had enough (`| head`) with 141, as the kernel would; neither leaves a trace on
    the terminal.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str]) -> int:
            logging.basicConfig(level=level, format="%(message)s")
            try:
                code = main(arguments)
                if sys.stdout:  # None if it was closed from the beginning.
                    sys.stdout.flush()
                return code
            except BrokenPipeError:
                if sys.stdout:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends.
                return 141
            except (ValueError, OSError) as error:
                if os.environ.get("PRETRAIN_TRACEBACK"):
                    traceback.print_exc()
                line = str(error)
                if isinstance(error, OSError) and error.filename and error.strerror:
                    line = f"{error.filename}: {error.strerror}."
                print(f"{name}: {line}" if name else line, file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return run

    return decorate


def listen(first: Callable[[int], None], again: Callable[[int], None] = lambda number: None) -> None:
    """From now on call `first` with the number of the first signal, and `again` on a second Ctrl-C, in a thread.

    Other signals that follow are left alone: schedulers and launchers repeat SIGTERM; only a person presses Ctrl-C again. Call it from the
    main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Python's own half of a signal runs in the main thread, between two of its instructions; this half runs in the handler itself.
    previous = signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for number in HANDLED:
        # Also where a shell's `&` has it ignored: whoever sends SIGINT to this very process means it.
        signal.signal(number, lambda number, frame: None)  # Without a handler in Python there would be no byte to read.
    threading.Thread(target=_read, args=(reader, first, again), name="signals", daemon=True).start()
    if previous >= 0:
        os.close(previous)  # Its thread reads the end and leaves.


def leaving(line: str | None) -> Callable[[int], None]:
    """What leaves at once with 128 + the signal's number, and says the line behind the signal's name. Ranks say nothing: they are many."""

    def leave(number: int) -> None:
        if line:
            say(f"{signal.Signals(number).name}: {line}")
        os._exit(128 + number)

    return leave


def say(line: str) -> None:
    """Write a line whose reader may be gone: a closed terminal must not keep a process from leaving."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return


def _read(reader: socket.socket, first: Callable[[int], None], again: Callable[[int], None]) -> None:
    came_at: float | None = None
    while received := reader.recv(64):
        for number in received:
            if number in HANDLED and came_at is None:
                came_at = time.monotonic()
                first(number)
            elif number == signal.SIGINT and came_at is not None and time.monotonic() - came_at > SAME_PRESS_SECONDS:
                again(number)
