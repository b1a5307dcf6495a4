"""The sockets of the rendezvous, and lines of JSON over them, from whoever is at the other end."""

import errno
import json
import os
import random
import socket
import time
from collections.abc import Mapping
from typing import Any

from ds_configs.atomic_files import allow_open_files
from training.launch.world import World

LONGEST_MESSAGE_BYTES = 1 << 16
# Between two tries to connect to rank 0: it rises.
SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
# How long a connection may stay silent before it is taken for something else than a rank of this job.
ANSWER_SECONDS = 30.0


def listen(world: World) -> socket.socket:
    """Listen where the ranks are told to come to.

    Raises:
        OSError: If the port is taken; with what to do.
        ValueError: If this process may not have a connection to every rank.
    """
    allow_open_files(world.size, f"rank 0, to which {world.size} ranks connect,")
    try:
        return _open(world, world.rendezvous_port)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OSError(
            f"port {world.rendezvous_port} cannot be opened for the ranks to meet ({why}). "
            "Another job? Give another port: deepspeed --master_port N, or MASTER_PORT=N."
        ) from error


def _open(world: World, port: int) -> socket.socket:
    """A job of one host needs nobody from outside. The name of a host among several may lead to another interface on each: all are open."""
    if world.size == world.local_size:
        family, _, _, _, address = socket.getaddrinfo(world.master_addr, port, type=socket.SOCK_STREAM)[0]
        try:
            return socket.create_server(address[:2], family=family, backlog=4096)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # A forwarded address, as in a container.
                raise
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=4096)


def reach(world: World, patience_seconds: float) -> socket.socket:
    """Connect to rank 0, which may not be listening yet."""
    deadline = time.monotonic() + patience_seconds
    pause = SHORTEST_PAUSE_SECONDS
    while True:
        try:
            return socket.create_connection((world.master_addr, world.rendezvous_port), timeout=ANSWER_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            # Thousands that wait for rank 0 must not take its processor from it.
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(LONGEST_PAUSE_SECONDS, 1.5 * pause)


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """One object, as one line."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def read(connection: socket.socket) -> dict[str, Any]:
    """One line of JSON.

    Raises:
        ValueError: If the other end closed or sent something else.
        OSError: If it sent nothing in time.
    """
    with connection.makefile("rb") as file:
        line = file.readline(LONGEST_MESSAGE_BYTES)
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(message, dict):
        raise ValueError("not a message of the rendezvous")
    return message
