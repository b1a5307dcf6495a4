"""Serve a trained model over HTTP, with OpenAI's completions and a page for people.

    python -m inference.serve RUN_DIR [options]

RUN_DIR is runs/<name>, which is exported once, runs/<name>@<checkpoint>, or any Hugging Face folder. See docs/serving.md.
"""

import argparse
import dataclasses
import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_configs.commands import command
from inference.export import find_folder
from inference.exporting.model_path import attention_window, find_model, max_positions
from inference.generation.settings import choose_dtype
from inference.server.limits import Limits
from model.hardware.processors import set_threads

# int8 would let a text depend on those that are written beside it.
_DTYPES = ("auto", "fp32", "bf16", "fp16")
KEY_VARIABLE = "HONGLOU_API_KEY"
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
# Without positions of its own (rotary), a model has no limit, but memory has.
_UNLIMITED_CONTEXT = 2048


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, every option at its default where it is not given."""
    parser = argparse.ArgumentParser(prog="python -m inference.serve", description="Serve a trained model over HTTP.")
    parser.add_argument("model", type=Path, metavar="RUN_DIR", help="runs/<name>, runs/<name>@<checkpoint>, or a Hugging Face folder")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen at, 0 is a free one (%(default)s)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=f"holds the key to ask for; otherwise {KEY_VARIABLE} does")
    parser.add_argument("--name", metavar="NAME", help="what the model is called in requests (the run's name)")
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="auto", help="precision of the weights; auto is what is faster here (%(default)s)"
    )
    for limit in dataclasses.fields(Limits):
        kind, shown = (float, "S") if limit.name.endswith("_seconds") else (int, "N")
        default, value = (argparse.SUPPRESS, "") if limit.default is dataclasses.MISSING else (limit.default, " (%(default)s)")
        name = f"--{limit.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=default, metavar=shown, help=limit.metadata["help"] + value)
    return parser.parse_args(arguments)


def read_key(file: Path | None) -> str | None:
    """The API key of a file or of the environment; None if there is none.

    Raises:
        ValueError: If there is one that cannot be used.
    """
    key = os.environ.get(KEY_VARIABLE)
    where = KEY_VARIABLE
    if file is not None:
        where = str(file)
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read ({error}). Put the key there, on one line.") from None
    if key is not None and (len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(f"{where}: an API key has at least 16 ASCII characters and no spaces. Make one: openssl rand -hex 32")
    return key


def check_exposure(host: str, key: str | None) -> None:
    """Who can be reached by others must ask for a key.

    Raises:
        ValueError: If the address is none, or not loopback and there is no key.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ValueError(f"--host {host}: is no address. Give one, such as 127.0.0.1 (this machine only) or 0.0.0.0 (everybody).") from None
    if key is None and not address.is_loopback:
        raise ValueError(f"--host {host}: others can reach it, so a key is needed. Set {KEY_VARIABLE} or give --api-key-file.")


def build_limits(options: argparse.Namespace, folder: Path) -> Limits:
    """Limits as asked for, within what the model holds and its layers look back over; that this is less than it holds is said.

    Raises:
        ValueError: If more is asked for, or one makes no sense.
    """
    positions, window = max_positions(folder), attention_window(folder)
    most = min(positions, window)
    reason = f"the model of {folder} has {positions} positions."
    if window < positions:
        reason = f"layers of the model of {folder} look back over {window} positions only; inference.generate writes longer texts with it."
    given = {limit.name: getattr(options, limit.name) for limit in dataclasses.fields(Limits) if hasattr(options, limit.name)}
    context = given.get("max_context", most if most < sys.maxsize else _UNLIMITED_CONTEXT)
    if context > most:
        raise ValueError(f"--max-context {context}: {reason}")
    if window < positions and "max_context" not in given:
        print(f"inference.serve: --max-context {context}: {reason}", file=sys.stderr)
    return Limits(**{"max_context": context, "max_prompt_tokens": max(1, context - 1), "max_tokens": context, **given})


@command("inference.serve")
def main(arguments: Sequence[str]) -> int:
    """The command. Exit code 128 + N is the end by signal N."""
    options = parse(arguments)
    set_threads()
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing. Run: .venv/bin/pip install -r requirements-serve.txt")
    key = read_key(options.api_key_file)
    check_exposure(options.host, key)
    folder = find_folder(options.model)
    limits = build_limits(options, folder)
    # What can be wrong with an address is told before seconds are spent on loading.
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{options.host}:{options.port}: cannot be listened at ({reason}). Choose another with --port.") from None
    return _serve(options, folder, limits, key, listener)


def _serve(options: argparse.Namespace, folder: Path, limits: Limits, key: str | None, listener: socket.socket) -> int:
    from inference.generation.engine import load_engine
    from inference.server.app import build_app
    from inference.server.batcher import Batcher
    from inference.server.completions import CompletionService
    from inference.server.copied import CopyFinder
    from inference.server.http_server import serve

    found = find_model(options.model)
    name = options.name or (found.run or found.path).resolve().name
    dtype, why = choose_dtype(options.dtype)
    print(f"inference.serve: precision {dtype}, {why}", file=sys.stderr)
    engine = load_engine(folder, dtype=dtype)
    batcher = Batcher(engine, limits)
    app = build_app(CompletionService(name, batcher), CopyFinder(found.run or found.path), key)
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"inference.serve: {name} at http://{shown}:{port} ({'with' if key else 'without'} a key)", file=sys.stderr, flush=True)
    return serve(app, listener, batcher)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
