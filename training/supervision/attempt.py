"""One start of a supervised command: its output passed on and remembered, its signals, and why it ended."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_configs.commands import HANDLED, say
from training.checkpoints.find_and_verify import NO_DAMAGE
from training.launch.launcher_process import end_group
from training.launch.process_tree import bound

REMEMBERED_LINES = 400
# `alpha: ` in front of what a rank said, as pdsh writes it; and pdsh's own line when a host's launcher has ended.
FROM_HOST = re.compile(r"^(?P<host>[\w.:-]+): (?P<line>.*)$")
HOST_ENDED = re.compile(
    r"^pdsh@\S+: (?P<host>[\w.:-]+): .*\b(exited with exit code (?P<code>\d+)|signal|No route|timed? ?out|refused)", re.IGNORECASE
)
# What rank 0 says of the first replica once the process group is there (`process_group.placement`).
MET = re.compile(r"^([\w.:-]+: )?pipeline 0: ranks ")
# A host whose part has ended before that has ended the start: the others wait for its ranks. Rank 0 and they have so long to say why.
LAST_WORDS_SECONDS = 20.0
HUNG = "no progress for"
# Lines about steps, and what launchers and libraries say between our lines.
NOISE = re.compile(r"^(step \d+/|\[\d{4}-|\[rank|\[W|\[E|pdsh@|\s|Traceback|Exception in|.*UserWarning|.*return func)|^$")


@dataclass(frozen=True)
class Ended:
    """How an attempt ended. `code` is as a shell gives it."""

    code: int
    cause: str
    """One line for the log: what a rank said last, else what the exit code means."""
    first_host: str | None
    """The host whose part of the job ended first, where pdsh says it; None after a hang, which the watchdogs of all hosts end at once."""


class Attempt:
    """The command, running. It ends with this process, however this process ends."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], stop_file: Path | None = None, grace_seconds: float = 300.0
    ) -> None:
        """Start it. If there is a `stop_file`, ranks that have met are asked to stop by it, and the command only `grace_seconds` later."""
        self.signal_number = 0
        self._stop_file = stop_file
        self._late = threading.Timer(grace_seconds, self._ask_command)
        self._late.daemon = True
        self.have_met = self.could_not_read = False  # A checkpoint, for some seconds: rank 0 ends as after a mistake, which it is not.
        self._over = False
        # In a session of its own: Ctrl-C reaches this process only, which asks the command once.
        self._process = subprocess.Popen(
            bound(command), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._first_host: str | None = None
        self._hopeless: Ended | None = None

    def wait(self) -> Ended:
        """Pass the output on until the command has ended."""
        assert self._process.stdout
        hopeless = None
        for raw in self._process.stdout:
            with contextlib.suppress(OSError):  # A reader that is gone must not end a run.
                sys.stdout.buffer.write(raw)
                sys.stdout.buffer.flush()
            line = raw.decode("utf-8", errors="replace").rstrip()
            self._lines.append(line)
            if self._first_host is None and (ended := HOST_ENDED.match(line)):
                self._first_host = ended["host"]
                code = int(ended["code"] or 1)
                # A stop may be heard of earlier here than there; and ranks whose lines go to files of their own are not seen to meet.
                if not self.have_met and code - 128 not in HANDLED:
                    hopeless = threading.Timer(LAST_WORDS_SECONDS, self._end_hopeless, [ended["host"], code])
                    hopeless.start()
            self.have_met = self.have_met or MET.match(line) is not None
            self.could_not_read = self.could_not_read or NO_DAMAGE in line
        if hopeless:
            hopeless.cancel()
        code = end_group(self._process.pid, self._process.wait())
        self._over = True  # Before the file is looked for: whoever makes it later takes it back.
        self._late.cancel()
        if self.signal_number and self._stop_file is not None:
            take_away(self._stop_file)  # A run that ended by itself has not read it, and the next start would.
        if self._hopeless:
            return self._hopeless
        hung = any(HUNG in line for line in self._lines)
        return Ended(code, cause_of(code, self._lines), None if hung else self._first_host)

    def _end_hopeless(self, host: str, code: int) -> None:
        """In a timer's thread: the ranks of this host will not come, and the others would wait minutes for them."""
        if self.signal_number:
            return
        found = [match for line in list(self._lines) if (match := FROM_HOST.match(line))]
        said = [match["line"] for match in found if match["host"] == host and not NOISE.match(match["line"])]
        cause = f"host {host} took no part in the start: {said[-1] if said else f'exit code {code}'}"
        self._hopeless = Ended(code, cause, host)
        self.end_at_once(signal.SIGKILL)

    def ask_to_stop(self, number: int) -> None:
        """In the signals' thread, which a network drive that hangs must not hold up."""
        self.signal_number = number
        if self._stop_file is None or not self.have_met:
            self._ask_command()
            return
        threading.Thread(target=self._ask_ranks, args=[self._stop_file, number], name="ask", daemon=True).start()
        self._late.start()

    def _ask_ranks(self, file: Path, number: int) -> None:
        try:
            file.touch()
        except OSError as error:
            say(f"supervise: {file} cannot be made ({error.strerror}); the launcher is asked, which may not wait for a save.")
            self._ask_command()
            return
        say(f"supervise: {signal.Signals(number).name}: asked to save and leave, by {file}. Ctrl-C again ends at once.")
        if self._over:
            take_away(file)

    def _ask_command(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def end_at_once(self, number: int) -> None:
        """In the signals' thread: Ctrl-C was pressed again."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def take_away(file: Path) -> None:
    """Remove a file that asked a run to stop."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        say(f"supervise: {file} cannot be looked for ({error.strerror}): remove it if it is there, or the next start will stop.")


def cause_of(code: int, lines: Sequence[str]) -> str:
    """The last thing that a rank said about an error; else the exit code in words."""
    said = [(match["host"], match["line"]) if (match := FROM_HOST.match(line)) else ("", line) for line in lines]
    telling = [
        (host, line) for host, line in said if not NOISE.match(line) and re.search(r"rank \d+|[Ee]rror|no progress|not |No such ", line)
    ]
    if telling:
        # Peers complain after the first to fail: the beginning of the last burst tells more than its end.
        host, line = telling[max(0, len(telling) - 8)]
        return f"{host}: {line}" if host and host not in line else line
    name = signal.Signals(code - 128).name if code > 128 and code - 128 in set(signal.Signals) else ""
    return f"exit code {code}" + (f" ({name})" if name else "")
