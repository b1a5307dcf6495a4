"""DeepSpeed's launcher as a child of the process that a person started: run to its end, its ranks asked to stop by the first signal.

A second Ctrl-C kills them. The launcher's command is made in `local.py`.
"""

import contextlib
import os
import signal
import subprocess
import time

from ds_configs.commands import leaving, listen, say
from training.launch.process_tree import bound, children_of

# Ranks keep training.stop_grace_seconds themselves; this is for one that cannot.
MARGIN_SECONDS = 30.0


def run_to_the_end(launcher: list[str], environment: dict[str, str], grace_seconds: float) -> tuple[int, bool]:
    """Run DeepSpeed's launcher, and see to its ranks if this process gets a signal. Nothing of it is left afterwards.

    Returns:
        The exit code, and whether a signal has ended the run.
    """
    # In a session of its own: Ctrl-C reaches this process only, which tells the ranks. DeepSpeed's launcher would tell one rank
    # after the other, and kill each after 30 s.
    process = subprocess.Popen(bound(launcher), env=environment, start_new_session=True)
    stopping = Stopping(process, grace_seconds)
    listen(stopping.ask, stopping.kill)
    signal.signal(signal.SIGTSTP, stopping.suspend)
    code = stopping.wait()
    signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    listen(leaving("stopped. The ranks had ended before."))
    stopped = bool(code and stopping.signal_number)
    return 128 + stopping.signal_number if stopped else code, stopped


def end_group(launcher: int, code: int) -> int:
    """Kill what a launcher that has ended left behind: ranks, if it was killed itself. Returns its exit code as a shell gives it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher, signal.SIGKILL)
    return code if code >= 0 else 128 - code


class Stopping:
    """What this process does with its signals while the launcher runs."""

    def __init__(self, launcher: subprocess.Popen[bytes], grace_seconds: float) -> None:
        self.signal_number = 0
        self._launcher = launcher
        self._grace_seconds = grace_seconds
        self._asked_at = 0.0

    def wait(self) -> int:
        """Until the launcher has ended; then end what it left behind. Returns its exit code as a shell gives it."""
        while True:
            try:
                code = self._launcher.wait(timeout=1)
            except subprocess.TimeoutExpired:
                if self.signal_number and time.monotonic() - self._asked_at > self._grace_seconds + MARGIN_SECONDS:
                    say(f"Ranks are left {MARGIN_SECONDS:.0f} s after training.stop_grace_seconds; ending them.")
                    self._signal_group(signal.SIGKILL)
            else:
                return end_group(self._launcher.pid, code)

    def kill(self, number: int) -> None:
        """On a second Ctrl-C, in the signals' thread."""
        say("Ctrl-C again: ending at once, without a save.")
        self._signal_group(signal.SIGKILL)

    def ask(self, number: int) -> None:
        """On the first signal, in the signals' thread."""
        self._asked_at, self.signal_number = time.monotonic(), number
        ranks = children_of(self._launcher.pid)
        name = signal.Signals(number).name
        if not ranks:
            say(f"{name}: no rank was started yet.")
            self._signal_group(signal.SIGKILL)
            return
        say(f"{name}: asking {len(ranks)} ranks to stop.")
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)  # Not SIGINT, of which Python would make a traceback while it starts.

    def suspend(self, number: int, frame: object) -> None:
        """Ctrl-Z: the terminal cannot reach ranks in another session."""
        self._signal_group(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._launcher.pid, number)
