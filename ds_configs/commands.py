"""How the commands of every package end. Standard library only."""

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str]], int]


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
