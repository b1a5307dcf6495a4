"""Which text is in a token store, or did a run read: sources, rules, counts, and the text itself.

    python -m data.inspect STORE|RUN [--documents N] [--sample N] [--window N] [--split train|valid]

STORE is a folder under data/stores, RUN a folder under runs.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ds_configs
from data.batches.datasets import Datasets, open_stream
from data.batches.permutation import place
from data.batches.token_stream import Stream
from data.config import DataConfig
from data.documents import DataError
from data.store import token_store
from data.store.identity import STORE_RECORD, spell_out_order
from data.store.registry import find_store
from data.tokenizers import tokenizer_folder
from ds_configs.atomic_files import read_object
from ds_configs.commands import command
from training.checkpoints.find_and_verify import open_checkpoint, published

_SHOWN_TOKENS = 60
_SHOWN_FILES = 10
_STORE_WINDOW = 256
_HASHED_BYTES = 4 << 20  # Larger files are compared by size: to look into 200 GB must not take an hour.


@dataclass(frozen=True)
class Subject:
    """What is inspected."""

    path: Path
    manifest: dict[str, Any]
    folder: Path | None
    """The store; None if a run's store is not on this machine any more."""
    config: DataConfig | None = None
    """The data section of the run; None where a store is inspected by itself."""
    seed: int = 0
    """Of the run."""
    note: str = ""

    def streams(self, split: str) -> list[tuple[str, Stream]]:
        """(name, tokens) of the streams of a split.

        Raises:
            DataError: If the store is gone or damaged.
        """
        parts = self.manifest["splits"][split]["streams"]
        return [(part["name"], open_stream(self._store(), self.manifest, part)) for part in parts]

    def tokenizer(self) -> tokenizer_folder.Tokenizer:
        """The tokenizer of the store."""
        return tokenizer_folder.load(self._store() / "tokenizer")

    def sample(self, number: int) -> list[int]:
        """The ids of a training sample of the run, in the order it reads them.

        Raises:
            DataError: If there is no run to say which order that is.
        """
        if self.config is None:
            raise DataError(f"{self.path}: the order of samples belongs to a run. Name one (runs/NAME), or use --window.")
        return Datasets(self._store(), self.manifest, self.config, self.seed).train.sample(number).tolist()

    def _store(self) -> Path:
        if self.folder is None:
            raise DataError(f"{self.path}: its store is not here, so no text can be shown. Put it back, or prepare the same text again.")
        return self.folder


def find_subject(path: Path) -> Subject:
    """Tell what lies at a path.

    Raises:
        ValueError: If it is neither a store nor a run, or a damaged one.
    """
    if (path / "checkpoints").is_dir() or (path / "config.json").is_file():
        return _of_run(path)
    if (path / token_store.MANIFEST).is_file():
        manifest = token_store.read_manifest(path)
        token_store.verify(path, manifest, max_hashed_bytes=_HASHED_BYTES)
        return Subject(path, manifest, path)
    raise DataError(f"{path}: neither a token store (data/stores/NAME) nor a run (runs/NAME).")


def _of_run(path: Path) -> Subject:
    run = ds_configs.load(path / "config.json")
    config = ds_configs.build_section(DataConfig, run.values.get("data", {}), "data", str(run.path))
    seed = run.values.get("run", {}).get("seed", 1024)
    record = path / STORE_RECORD
    if not record.is_file():
        found = find_store(config)
        if found is None:
            raise DataError(f"{path}: the run did not record which text it read, and nothing is prepared for its configuration.")
        note = "The run did not record which text it read. This is what its configuration means now."
        return Subject(path, found.manifest, found.folder, config, seed, note)
    manifest = read_object(record)
    for candidate in Path(config.directory).glob(f"*-{manifest['identity'][:12]}/{token_store.MANIFEST}"):
        if token_store.read_manifest(candidate.parent)["identity"] == manifest["identity"]:
            token_store.verify(candidate.parent, manifest, max_hashed_bytes=_HASHED_BYTES)
            return Subject(path, manifest, candidate.parent, config, seed)
    note = f"Its store is not in {config.directory} any more; this is what the run recorded of it."
    return Subject(path, manifest, None, config, seed, note)


def describe(subject: Subject) -> Iterator[str]:
    """Lines that say what went into a store, by which rules, and what came out."""
    manifest = subject.manifest
    yield from filter(None, (f"{subject.path}", subject.note))
    yield f"store      {subject.folder or 'not here'}, format {manifest['format']}"
    yield f"identity   {manifest['identity']}"
    made = manifest["tokenizer"]
    yield f"tokenizer  {manifest['rules']['tokenizer']['kind']}, {made['vocab_size']:,} tokens, SHA-256 {made['sha256']}"
    yield from _sources(manifest)
    yield from _rules(manifest["rules"])
    yield "\nSplits"
    for name, split in manifest["splits"].items():
        units = ", ".join(f"{split[unit]:,} {unit}" for unit in ("documents", "chars", "tokens") if split[unit] is not None)
        yield f"  {name}: {units.replace('chars', 'characters')}"
    yield from _seen(subject)


def _sources(manifest: dict[str, Any]) -> Iterator[str]:
    yield "\nSources"
    files = [*manifest["inputs"], *({**file, "name": f"tokenizer: {file['name']}"} for file in manifest["tokenizer_inputs"])]
    for file in files[:_SHOWN_FILES]:
        yield f"  {file['name']}  SHA-256 {file['sha256']}"
    if len(files) > _SHOWN_FILES:
        yield f"  and {len(files) - _SHOWN_FILES:,} more, all in {token_store.MANIFEST}"


def _rules(rules: dict[str, Any]) -> Iterator[str]:
    yield "\nRules"
    for index, source in enumerate(rules["sources"]):
        where = f"source {index + 1}: " if len(rules["sources"]) > 1 else ""
        for key, value in source.items():
            for line in value if key == "clean" else [value] if value not in (None, {}) else []:
                yield f"  {where}{key}: {_words(line)}"
    for key, value in rules.items():
        if key != "sources" and value not in (None, {}, False):
            yield f"  {key}: {_words(value)}"


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    name, rest = value.get("rule"), {key: item for key, item in value.items() if key != "rule" and item not in (None, [], {})}
    said = ", ".join(f"{key} {_words(item)}" for key, item in rest.items())
    return f"{name} ({said})" if name and said else name or said


def _seen(subject: Subject) -> Iterator[str]:
    """How far a run has read."""
    if subject.config is None:
        return
    order = ", ".join(f"{key} {value}" for key, value in spell_out_order(subject.config).items() if value not in (None, [None]))
    yield f"\nThe run reads it with {order}."
    for folder in published(subject.path)[:1]:
        checkpoint = open_checkpoint(folder).manifest
        recorded = checkpoint.get("text", {}).get("identity")
        same = {None: "which does not say of which text", subject.manifest["identity"]: "of this text"}.get(recorded, "of ANOTHER text")
        left_out = [(first, end) for first, end in checkpoint.get("spikes", {}).get("skipped_samples", [])]
        read = f"samples 0 to {place(checkpoint['consumed_samples'] - 1, left_out):,} were read"
        spikes = ", ".join(f"{first:,} to {end - 1:,}" for first, end in left_out)
        yield f"Checkpoint {folder.name}, {same}: {read}{f', but for those of spikes of the loss: {spikes}' if spikes else ''}."


def documents(subject: Subject, split: str, count: int) -> Iterator[str]:
    """The beginnings of the first documents of each stream of a split."""
    made = subject.tokenizer()
    for name, stream in subject.streams(split):
        starts = stream.document_starts()[:count].tolist()
        for number, start in enumerate(starts):
            end = min(start + _SHOWN_TOKENS, starts[number + 1] if number + 1 < len(starts) else stream.num_tokens)
            text = made.decode(stream.read(start, end - start).tolist())
            yield f"  {split}, {name}, document {number}: {' / '.join(text.strip().splitlines()[:2])}"


def window(subject: Subject, split: str, number: int) -> list[int]:
    """The ids of one window of a split, counted in the order of the text: of a run's `seq_length` tokens, else of 256.

    Raises:
        DataError: If there is none of that number.
    """
    length = subject.config.seq_length if subject.config else _STORE_WINDOW
    total = 0
    for _, stream in subject.streams(split):
        start, count = (number - total) * length, -(-stream.num_tokens // length)
        if start < stream.num_tokens:
            return stream.read(start, min(length, stream.num_tokens - start)).tolist()
        total += count
    raise DataError(f"--window {number}: the {split} split of {subject.path} has windows 0 to {total - 1} of {length} tokens.")


@command("data.inspect")
def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data.inspect", description="Say which text is in a store, or did a run read.")
    parser.add_argument("path", type=Path, metavar="STORE|RUN", help="data/stores/NAME or runs/NAME")
    parser.add_argument("--documents", type=int, default=3, metavar="N", help="show the beginnings of the first N documents (default: 3)")
    parser.add_argument("--sample", type=int, metavar="N", help="show training sample N of a run, in the order it reads them")
    parser.add_argument("--window", type=int, metavar="N", help="show window N of a split, in the order of the text")
    parser.add_argument("--split", choices=["train", "valid"], default="train", help="for --window and the documents")
    options = parser.parse_args(arguments)
    for name in ("documents", "sample", "window"):
        if (number := getattr(options, name) or 0) < 0:
            parser.error(f"--{name} {number}: it must be 0 or more")
    subject = find_subject(options.path)
    if options.sample is None and options.window is None:
        print("\n".join(describe(subject)))
        if subject.folder is not None and options.documents > 0:
            print("\nFirst documents")
            print("\n".join(documents(subject, options.split, options.documents)))
    if options.sample is not None:
        print(subject.tokenizer().decode(subject.sample(options.sample)))
    if options.window is not None:
        print(subject.tokenizer().decode(window(subject, options.split, options.window)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
