"""How the commands of every package end. Standard library only."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str]], int]


def command(name: str = "") -> Callable[[Main], Main]:
    """For a `main`, whose errors begin with `name` unless they begin with a file.

    A mistake in what was asked for is told in one line, with exit code 2. Ctrl-C ends the command with 130, and a reader of its output
    that has had enough (`| head`) with 141, as the kernel would; neither leaves a trace on the terminal.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str]) -> int:
            logging.basicConfig(level=logging.WARNING, format="%(message)s")
            try:
                code = main(arguments)
                sys.stdout.flush()
                return code
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends.
                return 141
            except (ValueError, OSError) as error:
                print(f"{name}: {error}" if name else error, file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return run

    return decorate
