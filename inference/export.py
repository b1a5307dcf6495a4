"""Write a run, a checkpoint, or another Hugging Face folder as a Hugging Face folder.

    python -m inference.export RUN_OR_FOLDER OUT [--format gpt2|opt|llama]

How weights are laid out in each format is `model.hugging_face.conversion`; this is where they come from and what belongs beside them.
"""

import argparse
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_configs.atomic_files import facts_of, object_or_nothing, read_object, replacing_folder, write_json, wrong_with
from ds_configs.commands import command
from inference.exporting.model_card import model_card, renew_evaluation
from inference.exporting.model_path import ModelPath, find_model, load_run_config, token_ids
from model.families import FAMILIES
from model.hugging_face.pretrained import INDEX_FILE, SINGLE_FILE
from training.checkpoints.find_and_verify import Checkpoint, CheckpointError, newest_good, open_checkpoint, published, verify

if TYPE_CHECKING:
    from model.gpt import GPT

log = logging.getLogger(__name__)

RECORD = "export.json"  # what an export was made from; a folder that has it is ours to replace
# Raised when exports change, so that one made before is made again.
LAYOUT = 3
# What the library writes into a folder, for one of any size and any number of pieces.
WEIGHT_FILES = (SINGLE_FILE, INDEX_FILE, "model-?????-of-?????.safetensors")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja"),
)


def export(model: ModelPath, out: Path, format: str | None = None) -> bool:
    """Export a model to a folder, which appears whole or not at all.

    Args:
        model: What to export; of a run, its newest good checkpoint.
        out: Made, or replaced if an earlier export is there; files in it that no export writes stay.
        format: The family whose format it is; None takes the model's own.

    Returns:
        False if `out` already is this export; then only its card is brought up to date with what the run's evaluation says.

    Raises:
        CheckpointError: If the model cannot be read, or `out` is something else than an export.
        ValueError: If the model does not fit the format.
    """
    if out.exists() and not (out / RECORD).is_file() and (out.is_file() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already and is no export, so it is not replaced. Name a new folder.")
    if model.run is None:
        _convert(model.path, out, format)
        return True
    config, model_config = load_run_config(model.run)
    format = format or model_config.family
    # Asked first with the newest there is, because verifying a large checkpoint takes its time.
    checkpoint = newest_good(model.run, slice(0)) if model.kind == "run" else open_checkpoint(model.path)
    record = _record(checkpoint, format, config.values)
    there = _is_export_of(out, record)
    if not there:
        if model.kind == "run":
            checkpoint = newest_good(model.run)
        elif damage := verify(checkpoint.folder)[1]:
            raise CheckpointError(f"{damage[0]}. Name the run's folder to export its newest good checkpoint.")
        asked, record = record, _record(checkpoint, format, config.values)
        there = record != asked and _is_export_of(out, record)
    if not there:
        place = next(parent for parent in out.absolute().parents if parent.is_dir())
        if not os.access(place, os.W_OK):  # Somebody else's run, before its weights are loaded.
            raise CheckpointError(
                f"{place}: cannot be written, and has no export of {checkpoint.folder.name}. Make one in a folder of yours, and name that: "
                f".venv/bin/python -m inference.export {model.path} FOLDER"
            )
        from inference.exporting.checkpoint_weights import load_gpt

        ids = _tokenizer_ids(model.run / "tokenizer", checkpoint)
        card = model_card(model.run, config.values, model_config, checkpoint)
        _write(out, record, load_gpt(checkpoint.folder, model_config), model.run / "tokenizer", ids, card)
    if os.access(out, os.W_OK):
        renew_evaluation(out, model.run, checkpoint.fingerprint)
    return not there


def check_weights(folder: Path) -> None:
    """Compare the weights of an export with its record, which a folder of another origin does not have: some 2 s a GiB.

    Raises:
        ValueError: Names a file that is missing or was changed, or the record if it is none.
    """
    advice = f" Export it again, or remove {folder / RECORD} if these are to be the weights."
    weights = read_object(folder / RECORD, f".{advice}").get("weights", {})
    try:
        damages = [damage for name, facts in weights.items() if (damage := wrong_with(folder / name, facts))]
    except (AttributeError, LookupError, TypeError) as error:  # JSON, but something else is in it.
        raise CheckpointError(f"{folder / RECORD}: its weights are not as an export records them.{advice}") from error
    if damages:
        raise CheckpointError(f"{damages[0]}.{advice}")


def _is_export_of(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether a folder was made of this and has kept its files; only then are its weights hashed."""
    if {**object_or_nothing(out / RECORD), "weights": None} != {**record, "weights": None}:
        return False
    try:
        check_weights(out)
    except (CheckpointError, OSError) as error:
        log.warning("%s: is made again (%s)", out, error)
        return False
    return (out / "config.json").is_file() and (out / "tokenizer.json").is_file()


def find_folder(path: Path, num_processes: int = 1, *, is_first: bool = True) -> Path:
    """The Hugging Face folder to load: the path itself, or a run's own export in its folder, made or renewed on the way.

    That is `export/` of the newest checkpoint, `export_<tag>/` of a named one. The first process says which it is, and which is the newest.

    Raises:
        CheckpointError: If there is no model at the path, the run has no good checkpoint, or the named one is damaged.
        ValueError: If its model has no Hugging Face format.
    """
    model = find_model(path)
    if model.run and num_processes > 1:
        raise CheckpointError(
            f"{path}: several processes need a folder. Export it: .venv/bin/python -m inference.export {path} OUT --format opt"
        )
    check_weights(path)
    folder = path
    if model.run:
        folder = model.run / ("export" if model.kind == "run" else f"export_{model.path.name}")
        export(model, folder)
    used = object_or_nothing(folder / RECORD).get("checkpoint")
    if used and is_first:
        newest = next((one.name for one in published(folder.resolve().parent)), used)
        print(f"checkpoint: {used}" + (f"; the newest of its run is {newest}" if newest != used else ""), file=sys.stderr)
    return folder


def _record(checkpoint: Checkpoint, format: str, values: Mapping[str, Any]) -> dict[str, Any]:
    data = values.get("data", {})
    tokenizer = data.get("tokenizer", {})
    # How the run cuts held-out text, so that its score can be had again from the folder alone; null where the run does not say.
    rows = {"seq_length": data.get("seq_length"), "windows": data.get("windows", "stream")}
    rows |= {"add_bos": tokenizer.get("add_bos", False), "add_eos": tokenizer.get("add_eos", True)}
    facts = {"checkpoint": checkpoint.folder.name, "step": checkpoint.step, "fingerprint": checkpoint.fingerprint}
    return {**facts, "format": format, "layout": LAYOUT, "text": checkpoint.manifest.get("text"), "rows": rows}


def _tokenizer_ids(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The ids of the special tokens. What the model writes is read with the tokenizer it was trained with, or not at all.

    Raises:
        CheckpointError: If the run's tokenizer is another one.
    """
    from data.tokenizers.tokenizer_folder import fingerprint, load

    tokenizer = load(folder)
    text = checkpoint.manifest.get("text")
    if text is None:
        log.warning("%s does not say which tokenizer it was trained with; the one in %s is taken.", checkpoint.folder, folder)
    elif (found := fingerprint(folder)) != text["tokenizer"]:
        raise CheckpointError(
            f"{folder}: SHA-256 {found[:12]} is not the tokenizer that {checkpoint.folder} was trained with ({text['tokenizer'][:12]}). "
            f"Copy that one here, from the token store {text['store']}."
        )
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}


def _convert(folder: Path, out: Path, format: str | None) -> None:
    from model.hugging_face.conversion import from_folder

    check_weights(folder)
    config, model = from_folder(folder)
    # Of which checkpoint and text they are holds for the same weights in another format.
    origin = object_or_nothing(folder / RECORD)
    record = {**origin, "folder": str(folder), "format": format or config.family, "layout": LAYOUT}
    card = f"# {folder.resolve().name}\n\nThe weights of `{folder}` in another format.\n"
    _write(out, record, model, folder, token_ids(folder), card)
    if left := sorted(path.name for path in folder.iterdir() if not (out / path.name).exists() and not any(map(path.match, WEIGHT_FILES))):
        log.warning("%s: not taken along: %s", folder, ", ".join(left))


def _write(out: Path, record: Mapping[str, Any], model: "GPT", tokenizer: Path, ids: Mapping[str, Any], card: str) -> None:
    """Weights, and all that goes beside them; `tokenizer` is the folder that has its files."""
    from safetensors import SafetensorError

    from model.hugging_face.conversion import to_folder

    with replacing_folder(out) as folder:
        try:
            to_folder(model, model.config, folder, record["format"])
        except SafetensorError as error:  # what the library makes of a full disk
            raise CheckpointError(f"{out}: the weights could not be written ({error}). Is there room on that disk?") from error
        for path in folder.glob("*.safetensors"):
            shutil.copymode(folder / "config.json", path)  # the library makes them readable by their owner alone
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
        _complete_tokenizer(folder, model.config.max_seq_length)
        write_json(folder / "config.json", {**object_or_nothing(folder / "config.json"), **ids}, indent=2)
        # A folder of another's may also say how text is best drawn.
        write_json(folder / "generation_config.json", {**object_or_nothing(tokenizer / "generation_config.json"), **ids}, indent=2)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_json(folder / RECORD, {**record, "weights": {path.name: facts_of(path) for path in folder.glob("*.safetensors")}}, indent=2)
        _keep(out, folder)
        before = object_or_nothing(out / RECORD).get("fingerprint")
        if before is None or before != record.get("fingerprint"):
            for path in sorted(folder.glob("*.gguf")):
                anew = f"Make it anew: .venv/bin/python -m inference.to_gguf {shlex.quote(str(out))} {shlex.quote(str(out / path.name))}"
                log.warning("%s: is kept, and is older than the weights beside it now. %s", out / path.name, anew)


def _keep(out: Path, folder: Path) -> None:
    """Copy what lies in an earlier export and no export writes: what was found out about it, notes, weights in other formats."""
    for path in out.iterdir() if out.exists() else ():
        if (folder / path.name).exists() or path.name in TOKENIZER_FILES or any(map(path.match, WEIGHT_FILES)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, folder / path.name, symlinks=True)
        else:
            shutil.copy2(path, folder / path.name, follow_symlinks=False)


def _complete_tokenizer(folder: Path, max_seq_length: int) -> None:
    """Say in the tokenizer's settings what padding a batch and cutting a text to length need, unless they say it already."""
    settings = object_or_nothing(folder / "tokenizer_config.json")
    if settings:
        # Padding is masked, so any token serves; a model without one of its own pads with its end of text.
        wanted = {"pad_token": settings.get("eos_token"), "model_max_length": max_seq_length}
        missing = {key: value for key, value in wanted.items() if settings.get(key) is None and value is not None}
        write_json(folder / "tokenizer_config.json", {**settings, **missing}, indent=2)


@command("inference.export")
def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m inference.export", description="Write a run's weights as a Hugging Face folder.")
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_FOLDER", help="runs/<name>, runs/<name>@<checkpoint>, or a Hugging Face folder"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--format", choices=tuple(FAMILIES), help="default: the model's own family")
    options = parser.parse_args(arguments)
    written = export(find_model(options.source), options.out, options.format)
    record = object_or_nothing(options.out / RECORD)
    made_of = f"step {record['step']} of {options.source}" if "step" in record else str(options.source)
    print(f"{options.out}: {made_of} as {record['format']}" + ("" if written else ", already exported; nothing to do"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
