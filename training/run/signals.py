"""SIGINT, SIGTERM and SIGUSR1, seen by a thread of their own, so that a main thread may wait inside C code for a peer or a device.

What a signal means depends on how far a start has come: `leaving` at once until there is something to save, `stop_request.StopRequest` in
a rank that trains, `launch/launcher_process.Stopping` in the process that a person started. The last `listen` counts.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

# SIGUSR1 is what schedulers are asked to send some time before the end (`sbatch --signal=USR1@120`).
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Put into a run's folder, it asks for the same without a signal.
STOP_FILE = "STOP"
# One Ctrl-C can arrive twice: from the terminal's process group and from a launcher (or `timeout`) that passes it on.
SAME_PRESS_SECONDS = 0.5


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
