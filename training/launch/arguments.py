"""The words behind `run_pretrain.sh`, as a person typed them or as a launcher handed them to a rank. No torch here."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def parse(arguments: Sequence[str], default: str) -> tuple[str, list[str]]:
    """CONFIG and overrides. The launcher's --local_rank is taken from the environment instead."""
    parser = argparse.ArgumentParser(prog="run_pretrain.sh", description="Train a run.", allow_abbrev=False)
    parser.add_argument(
        "words", nargs="*", metavar="CONFIG or dotted.key=value", help=f"a run's JSON file (default: {default}), then changes"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    # Options there are not go on to the overrides, where one line says so: argparse would print its usage on every rank.
    known, options = parser.parse_known_args(list(arguments))
    words = known.words
    path = words.pop(0) if words and not OVERRIDE.match(words[0]) else default
    return path, [*words, *options]


def check_quotes(overrides: Sequence[str], environment: Mapping[str, str]) -> None:
    """Between hosts DeepSpeed hands arguments to a remote shell, which takes quotes away unless there is a space.

    Raises:
        ValueError: If an override began as a JSON list, object or text and is none any more.
    """
    if environment.get("CROSS_SIZE", "1") == "1":
        return
    for override in overrides:
        key, _, value = override.partition("=")
        if not value.startswith(("[", "{", '"')):
            continue
        try:
            json.loads(value)
        except ValueError:
            raise ValueError(
                f'command line: "{override}" is no JSON as it arrived here: the remote shell took its quotes. '
                f"Put a space behind the equals sign ('{key}= ...'), or the value into the configuration (docs/cluster.md)."
            ) from None
