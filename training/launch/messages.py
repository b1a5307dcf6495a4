"""Lines of JSON over a socket, from whoever is at the other end: what ranks say to each other in the rendezvous."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

LONGEST_MESSAGE_BYTES = 1 << 16


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
