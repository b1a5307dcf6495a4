"""Judge a model: loss and bits per character on held-out text, what it has learnt by heart, the texts it wrote, benchmarks.

    python -m inference.evaluate RUN_DIR|FOLDER [--held-out] [--text FILE] [--memorization N] [--generated FILE] [--tasks NAME] [options]

The table goes to standard output, everything else to standard error. The same figures are written to `evaluation.json` in the run's folder
(or in FOLDER), and into the model card of the export. See docs/evaluation.md.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import check_output, object_or_nothing, write_json
from ds_configs.commands import command
from inference.evaluation import questions, results
from inference.export import RECORD, find_folder
from inference.exporting.model_card import renew_evaluation
from inference.exporting.model_path import find_model
from inference.generation.settings import DTYPES
from model.hardware.processors import set_threads


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, every option at its default where it is not given."""
    parser = argparse.ArgumentParser(prog="python -m inference.evaluate", description="Judge a model.")
    parser.add_argument("model", type=Path, metavar="RUN_DIR", help="runs/<name>, runs/<name>@<checkpoint>, or a Hugging Face folder")
    what = parser.add_argument_group("what is judged (held-out text, if nothing else is asked for)")
    what.add_argument("--held-out", action="store_true", help="score the text that was held out of training")
    what.add_argument("--text", action="append", default=[], type=Path, metavar="FILE", help="score this text; may be given several times")
    what.add_argument("--memorization", type=int, metavar="N", help="continue N passages of the training text and N of the held-out text")
    what.add_argument(
        "--generated", action="append", default=[], type=Path, metavar="FILE", help="judge texts that inference.generate wrote"
    )
    what.add_argument(
        "--tasks", action="append", default=[], metavar="NAME", help="a benchmark of lm-eval, or a .json or .jsonl file of your questions"
    )
    parser.add_argument(
        "--by", action="append", default=[], choices=("source", "chapter", "form"), help="also score groups; may be given several times"
    )
    parser.add_argument("--prefix-tokens", type=int, default=32, metavar="N", help="of a passage to continue (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="that must be the text's own for a hit (%(default)s)")
    parser.add_argument("--ngram-size", type=int, default=10, metavar="N", help="characters of an n-gram (%(default)s)")
    parser.add_argument("--min-span", type=int, default=20, metavar="N", help="characters of a copied passage (%(default)s)")
    parser.add_argument("--corpus", type=Path, metavar="STORE", help="training text of a folder that does not name it")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at a time (%(default)s)")
    parser.add_argument("--dtype", choices=(*DTYPES, "auto"), default="fp32", help="precision of the weights (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures of this command there, as JSON")
    options = parser.parse_args(arguments)
    options.held_out |= not (options.text or options.memorization is not None or options.generated or options.tasks)
    return options


# Options that steer only some of what can be judged.
_STEERS = {
    "by": ("held_out", "text"),
    "prefix_tokens": ("memorization",),
    "new_tokens": ("memorization",),
    "ngram_size": ("generated",),
    "min_span": ("generated",),
    "corpus": ("held_out", "memorization", "generated"),
    "batch_size": ("held_out", "text", "memorization", "tasks"),
    "dtype": ("held_out", "text", "memorization", "tasks"),
}


def home_of(model: Path) -> Path:
    """The folder whose `evaluation.json` holds what is found out about a model: the run's, or a Hugging Face folder itself."""
    found = find_model(model)
    if found.run is not None:
        return found.run
    parent = model.resolve().parent
    return parent if (parent / "checkpoints").is_dir() else model


@command("inference.evaluate")
def main(arguments: Sequence[str]) -> int:
    """The command."""
    options = parse(arguments)
    set_threads()
    home = home_of(options.model)
    _check(options, home)
    is_kept = os.access(home, os.W_OK)  # Somebody else's run can be judged too.
    if not is_kept:
        print(f"{home}: cannot be written, so {results.FILE} is not; --output FILE keeps the figures elsewhere", file=sys.stderr)
    folder = find_folder(options.model)
    record = object_or_nothing(folder / RECORD)
    about = {key: record.get(key) for key in results.ABOUT}
    # Only now: torch takes a second to import, and a mistake should not wait for it.
    from inference.evaluation.sections import Evaluation

    found: list[Mapping[str, Any]] = []
    for name, result in Evaluation(options, folder).sections():
        found.append({"name": name, **result})
        print(results.markdown(found[-1]) + "\n", flush=True)
        if is_kept:
            results.add(home, name, result, about)
    if options.output:
        write_json(options.output, {"model": str(options.model), **about, "sections": found})
    if is_kept and about["fingerprint"]:
        renew_evaluation(folder, home, about["fingerprint"])
    if written := [str(path) for path in (is_kept and home / results.FILE, options.output) if path]:
        print(f"written to {' and '.join(written)}", file=sys.stderr)
    return 0


def _check(options: argparse.Namespace, home: Path) -> None:
    """What can be found out before anything is loaded; the figures go into `home`."""
    results.read(home)
    for name in ("batch_size", "prefix_tokens", "new_tokens", "ngram_size", "min_span", "memorization"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} = {value}; it must be 1 or more.")
    if options.output:
        check_output(options.output)
        used = [home / results.FILE, *options.text, *options.generated, *map(Path, options.tasks)]
        if options.output.resolve() in [path.resolve() for path in used]:
            raise ValueError(f"{options.output}: holds something else that this command needs. Name another file with --output.")
    for paths in (options.text, options.generated):
        for path in paths:
            if not path.exists():
                raise ValueError(f"{path}: no such file.")
            if [other.name for other in paths].count(path.name) > 1:
                raise ValueError(f"{path}: another file is called {path.name} too, and sections go by that name. Rename one.")
    for task in options.tasks:
        questions.check_task(task)
    defaults = parse([str(options.model)])
    for name, judged in _STEERS.items():
        if getattr(options, name) != getattr(defaults, name) and not any(getattr(options, what) for what in judged):
            option, wanted = (f"--{one.replace('_', '-')}" for one in (name, judged[0]))
            raise ValueError(f"{option}: has no effect on what is to be judged. Leave it out, or add {wanted}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
