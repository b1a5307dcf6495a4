"""The rendezvous of all ranks before the process group exists: what is wrong anywhere is said once, and nobody waits for the absent.

Without it a rank that finds a mistake of its own (a checkout or a token store its host does not see) leaves in silence, and the
others wait half an hour for it inside torch. Plain sockets, on the port torch.distributed opens right after, so a port that is
taken or closed to other hosts shows here too. Rank 0 listens; every other rank reports what its preflight checks found and is told
whether to start. docs/architecture.md says why this is not torch's TCPStore.

Anybody can connect to a port. So rank 0 hears every connection in a thread of its own, takes nothing that is not exactly a
report, and prints no text that came over it except short printable names and values: a problem is said by the rank that has it. That a rank
sees the run's folder is proved by the secret in a file there.
"""

import contextlib
import errno
import logging
import queue
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_configs.errors import few
from training.diagnosis.lost_hosts import lost_ranks, ranks_without_ssh
from training.launch.preflight_reports import LONGEST_TEXT, Report, is_report, ranks_to_speak, reasons_against, where_to_look
from training.launch.sockets import ANSWER_SECONDS, listen, reach, read, send
from training.launch.world import World

log = logging.getLogger(__name__)

# Once it is clear that there will be no start, ranks that are late have this long to hear of it.
PATIENCE_SECONDS = 60.0
REMIND_SECONDS = 20.0
# After so long without a report rank 0 looks whether hosts of those that are missing are lost.
LOOK_SECONDS = 5.0
# A network file system may show a new file a moment later.
SIGHT_SECONDS = 5.0
MOST_STRANGERS = 1000
RETRY_SECONDS = 0.1


def agree_to_start(world: World, own: Report, limit_seconds: float, say: Callable[[str], None]) -> bool:
    """Wait for the reports of all ranks of the job and decide, the same everywhere, whether to start.

    Args:
        world: The place of this rank.
        own: What this rank found. Rank 0 has said its problem before; another rank says it when it is told to.
        limit_seconds: How long ranks may take to come.
        say: Prints a line at once. The launcher ends all ranks when the first leaves, so nobody leaves before all is said.

    Returns:
        True to start.
    """
    if world.size == 1:
        return not own.problem
    return _host(world, own, limit_seconds, say) if world.rank == 0 else _join(world, own, limit_seconds, say)


def _host(world: World, own: Report, limit_seconds: float, say: Callable[[str], None]) -> bool:
    here = socket.gethostname()
    try:
        server = listen(world)
    except (OSError, ValueError) as error:
        if not own.problem:
            say(f"host {here}: {error}")
        return False
    with contextlib.ExitStack() as kept:
        try:
            name, secret = kept.enter_context(_secret_file(own))
        except OSError as error:
            problem = f"host {here}: the run's folder {own.folder} cannot be written ({error.strerror}). Make room, or set run.directory."
            say(problem)
            own, name, secret = replace(own, problem=problem), "", ""
        received: queue.Queue[tuple[dict[str, Any], socket.socket]] = queue.Queue()
        hello = {"job": _job(world, own), "file": name}
        listener = threading.Thread(target=_accept, args=(server, hello, world.size, received), daemon=True)
        listener.start()
        reports, connections, lost = _collect(received, secret, world, own, limit_seconds)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # Wakes the thread.
        listener.join()
        server.close()  # Before anyone goes on: torch opens the same port next.
    lines = reasons_against(world, own, reports, limit_seconds, lost)
    start = not (lines or own.problem or any(report["problem"] for report in reports.values()))
    for line in lines:
        say(line)
    speaking = ranks_to_speak(own, reports)
    for rank, connection in connections.items():
        with contextlib.suppress(OSError):  # It left; the process group will say so.
            send(connection, {"start": start, "say": rank in speaking})
    for connection in connections.values():
        if not start:
            with contextlib.suppress(OSError):
                connection.settimeout(ANSWER_SECONDS)
                connection.recv(1)  # Until the other end, having said what it has to say, hangs up.
        connection.close()
    return start


@contextmanager
def _secret_file(own: Report) -> Iterator[tuple[str, str]]:
    """A file in the run's folder for the time of the rendezvous: its name, for all to know, and what is in it.

    Raises:
        OSError: If it cannot be written.
    """
    if own.folder is None or own.problem:
        yield "", ""
        return
    for left_behind in own.folder.glob(".start-*"):
        left_behind.unlink(missing_ok=True)
    path, secret = own.folder / f".start-{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        path.touch(mode=0o600)
        path.write_text(secret, encoding="utf-8")
        yield path.name, secret
    finally:
        path.unlink(missing_ok=True)


def _accept(server: socket.socket, hello: Mapping[str, Any], size: int, received: queue.Queue[Any]) -> None:
    """Greet whoever comes, each in a thread: a slow rank, or a stranger who says nothing, holds up nobody."""
    guests = threading.BoundedSemaphore(2 * size + MOST_STRANGERS)
    while True:
        try:
            connection, _ = server.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(RETRY_SECONDS)  # Strangers hang up, or are hung up on; `listen` made room for the ranks.
                continue
            return  # The rendezvous is over.
        if not guests.acquire(blocking=False):
            connection.close()
            continue
        threading.Thread(target=_greet, args=(connection, hello, size, guests, received), daemon=True).start()


def _greet(
    connection: socket.socket, hello: Mapping[str, Any], size: int, guests: threading.BoundedSemaphore, received: queue.Queue[Any]
) -> None:
    """Hand on what the rank at the other end brings; hang up on anything else."""
    try:
        connection.settimeout(ANSWER_SECONDS)
        send(connection, hello)
        report = read(connection)
    except (OSError, ValueError):
        report = {}
    if is_report(report, size):
        received.put((report, connection))
    else:
        connection.close()
    guests.release()


def _collect(
    received: queue.Queue[tuple[dict[str, Any], socket.socket]], secret: str, world: World, own: Report, limit_seconds: float
) -> tuple[dict[int, dict[str, Any]], dict[int, socket.socket], dict[int, str]]:
    """Wait until all have come that can, or the time is over: the full limit, or a minute once it is clear that there is no start.

    When all places are taken, one of them by somebody who does not know the secret, the rank itself may still come.

    Returns:
        Reports and connections by rank, and the hosts of ranks that could not be started, by rank.
    """
    remind_at = time.monotonic() + REMIND_SECONDS
    deadline = time.monotonic() + (PATIENCE_SECONDS if own.problem else limit_seconds)
    reports: dict[int, dict[str, Any]] = {}
    connections: dict[int, socket.socket] = {}
    lost: dict[int, str] = {}
    while (left := deadline - time.monotonic()) > 0:
        try:
            report, connection = received.get(timeout=min(left, LOOK_SECONDS))
        except queue.Empty:
            absent = [rank for rank in range(1, world.size) if rank not in reports]
            late = time.monotonic() > remind_at
            found = lost_ranks(absent)
            if found is None and late:
                found = ranks_without_ssh(absent)
            if found and received.empty():  # To ask takes seconds, in which a rank may have come.
                lost = found
                deadline = min(deadline, time.monotonic() + (PATIENCE_SECONDS if len(lost) < len(absent) else 0))
            elif late:
                remind_at += REMIND_SECONDS
                log.warning(
                    "%d of %d ranks are here; waiting for rank %s. %s",
                    len(reports) + 1,
                    world.size,
                    few(absent),
                    where_to_look(world) or "If a host is down: python -m training.doctor --hostfile FILE names it.",
                )
            continue
        rank = report["rank"]
        report["sees"] = secrets.compare_digest(report.pop("secret").encode(), secret.encode())
        if rank in reports and not (report["sees"] and not reports[rank]["sees"]):
            connection.close()  # Who has shown the secret keeps the place.
            continue
        reports[rank], connections[rank] = report, connection
        unproved = any(not report["sees"] and not report["problem"] for report in reports.values())
        if unproved or report["problem"]:
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
        if len(reports) == world.size - 1:
            deadline = min(deadline, time.monotonic() + (SIGHT_SECONDS if unproved else 0))
    return reports, connections, lost


def _join(world: World, own: Report, limit_seconds: float, say: Callable[[str], None]) -> bool:
    here = socket.gethostname()

    def say_for_host(problem: str) -> bool:
        """Where rank 0 cannot be told, one rank of each host speaks."""
        if world.local_rank == 0:
            say(f"host {here}: {problem}")
        return False

    try:
        connection = reach(world, PATIENCE_SECONDS if own.problem else limit_seconds)
    except OSError as error:
        return say_for_host(own.problem or f"no answer from rank 0 at {_address(world)} within {limit_seconds:.0f} s ({error}).")
    with connection:
        try:
            hello = read(connection)
            theirs, ours = hello["job"], _job(world, own)
            if theirs != ours and None not in (theirs["folder"], ours["folder"]):
                # Whose text this is, nobody knows: it is not repeated.
                return say_for_host(f"{_address(world)} is another job's. Use another port: deepspeed --master_port N, or MASTER_PORT=N.")
            problem = own.problem and own.problem[:LONGEST_TEXT]
            report = {"rank": world.rank, "host": here, "problem": problem, "facts": dict(own.facts), "loopback": own.loopback}
            send(connection, {**report, "secret": _read_secret(own.folder, hello["file"])})
            connection.settimeout(limit_seconds + ANSWER_SECONDS)
            answer = read(connection)
            if answer["start"] is True:
                return True
            if answer["say"] is True and own.problem:
                say(f"rank {world.rank} on {here}: {own.problem}")
        except (OSError, ValueError, KeyError, TypeError):
            return say_for_host(own.problem or f"what answers at {_address(world)} is not rank 0, or it left before the start.")
    return False


def _read_secret(folder: Path | None, name: str) -> str:
    """What is in the file that rank 0 has put into the run's folder; nothing if it cannot be seen here."""
    if folder is None or not re.fullmatch(r"\.start-[0-9a-f]{16}", name):
        return ""
    deadline = time.monotonic() + SIGHT_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if found := (folder / name).read_text(encoding="ascii", errors="replace")[:64]:
                return found
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.25)


def _job(world: World, own: Report) -> dict[str, Any]:
    return {"size": world.size, "folder": own.folder and str(own.folder)}


def _address(world: World) -> str:
    return f"{world.master_addr}:{world.rendezvous_port}"
