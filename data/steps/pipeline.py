"""The steps of a preparation in order: clean -> deduplicate -> shuffle -> split -> train a tokenizer -> tokenize.

Every step leaves its files and results in the work folder, so that a start after a kill goes on where the last one was.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.config import DataConfig
from data.corpora import sources
from data.documents import DataError
from data.steps import clean, tokenization
from data.steps.shuffle import Spooled, shuffle
from data.steps.split import Place, Split, plan_splits
from data.steps.tasks import Result, Runner, Task
from data.steps.tokenization import Shard
from data.tokenizers import adoption, tokenizer_folder, trainers
from ds_configs.files import write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenized:
    """What came of one shard."""

    shard: Shard
    output: Path
    """Prefix of the pairs of both splits."""
    result: Result
    """Per split: documents, tokens, chars; and per pair, under its name."""

    def pairs(self, split: str) -> list[tuple[Path, int, Result]]:
        """Prefix, source and counts of each pair of a split that has documents."""
        found = []
        for name, counts in self.result["pairs"].items():
            of_split, _, source = name.partition("-")
            if of_split == split and counts["documents"]:
                found.append((tokenization.split_prefix(self.output, name), int(source or self.shard.source), counts))
        return found


@dataclass(frozen=True)
class Linked:
    """A shard of the store."""

    name: str
    prefix: Path
    """Of its files in the work folder, cut where a budget ended."""
    source: int
    counts: dict[str, int]
    """Its documents, tokens and chars."""


@dataclass(frozen=True)
class Steps:
    """Results of all steps: what the store and its report are made of."""

    cleaned: list[Result]
    copies: Result | None
    tokenizer: Path
    train: list[Tokenized]
    """Shards whose training documents are used, in order. The last one may go beyond the budget."""
    valid: list[Tokenized]


def run_steps(config: DataConfig, work: Path, downloads: Path, run: Runner) -> Steps:
    """Run what is not done yet of all steps.

    Raises:
        DataError: If the input, the rules or the machine do not allow it.
    """
    parts = sources.parts(config, downloads)
    prefixes = [work / "1-clean" / f"{index:05d}" for index in range(len(parts))]
    tasks = [Task(prefix, clean.clean_part, (config, part)) for prefix, part in zip(prefixes, parts, strict=True)]
    cleaned = run(tasks, config.num_workers)
    clean.check_bad_input(cleaned, config)
    copies: Result | None = None
    keeps: list[Path | None] = [None] * len(parts)
    if config.deduplicate is not None:
        masks = work / "2-copies" / "all"
        (copies,) = run([Task(masks, clean.drop_copies, (config, prefixes))], 1)
        keeps = [clean.keep_path(masks, prefix) for prefix in prefixes]
    sizes = copies or {unit: [result[unit] for result in cleaned] for unit in ("documents", "chars")}
    _check_every_source(config, [part.source for part in parts], sizes["documents"])
    told = [0 if config.mixes_sources else part.source for part in parts]
    spooled = [Spooled(*values) for values in zip(prefixes, keeps, told, sizes["documents"], sizes["chars"], strict=True)]
    shards, ends = _place(shuffle(config, spooled, work, run) if config.shuffle else spooled)
    text = _Text(shards, plan_splits(config, ends), sum(sizes["chars"]))
    folder = work / "tokenizer"
    make_tokenizer(config, text, folder)
    train, valid = _tokenize(config, text, (folder, work / "4-tokens"), run)
    return Steps(cleaned, copies, folder, train, valid)


def _check_every_source(config: DataConfig, sources_of_parts: Sequence[int], documents: Sequence[int]) -> None:
    for source, name in enumerate(config.source_names):
        if not sum(count for of, count in zip(sources_of_parts, documents, strict=True) if of == source):
            raise DataError(
                f"data.sources: no text is left of {name}: all of it was unreadable, dropped by data.clean, or a copy of another source's."
                " Check it, or remove it."
            )


@dataclass(frozen=True)
class _Text:
    """All documents behind the shuffle."""

    shards: Sequence[Shard]
    splits: dict[int, Split]
    """Of each source."""
    chars: int


def _place(spooled: Sequence[Spooled]) -> tuple[list[Shard], dict[int, Place]]:
    """Number the documents and characters of all shards of a source through; the second value is the place behind its last one."""
    shards: list[Shard] = []
    ends: dict[int, Place] = {}
    for item in spooled:
        if item.documents:
            place = ends.get(item.source, Place(0, 0, 0))
            shards.append(Shard(item.prefix, item.keep, place, item.source))
            ends[item.source] = Place(place.shard + 1, place.first_document + item.documents, place.first_char + item.chars)
    logger.info("%d documents in %d shards", sum(end.first_document for end in ends.values()), len(shards))
    return shards, ends


def make_tokenizer(config: DataConfig, text: _Text, folder: Path) -> None:
    """Train or take over the tokenizer, unless an earlier start did."""
    done = folder.with_name("tokenizer.done.json")
    if done.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if config.tokenizer.kind == "existing":
        adoption.adopt(config.tokenizer, folder)
    else:
        trainers.train(tokenization.training_texts(text.shards, text.splits), config.tokenizer, folder, text.chars)
    made = tokenizer_folder.load(folder)
    logger.info("tokenizer: %s, %d tokens", config.tokenizer.kind, made.vocab_size)
    write_json(done, {"vocab_size": made.vocab_size})


def _tokenize(config: DataConfig, text: _Text, folders: tuple[Path, Path], run: Runner) -> tuple[list[Tokenized], list[Tokenized]]:
    """Tokenize the shards that the budgets ask for, and return those of each split. `folders`: the tokenizer's, and for the ids."""
    train: list[Tokenized] = []
    valid: list[Tokenized] = []
    for source, split in text.splits.items():
        shards = [shard for shard in text.shards if shard.source == source]
        left = config.max_train_tokens
        if left is not None:
            left -= sum(item.result["train"]["tokens"] for item in train)
            if left <= 0:
                raise DataError(
                    f"data.max_train_tokens = {config.max_train_tokens} is reached before {config.source_names[source]} begins, of which"
                    " nothing would be trained on. Set data.shuffle=true, or give the sources weights."
                )
        budgets = {"train": left, "valid": config.validation.max_tokens if config.mixes_sources else valid_budget(config)}

        def tokenize(some: Sequence[Shard], budget: str, split: Split = split, limits: dict[str, int | None] = budgets) -> list[Tokenized]:
            def enough(results: list[Result]) -> bool:
                limit = limits.get(budget)
                return limit is not None and sum(result[budget]["tokens"] for result in results) >= limit

            outputs = [folders[1] / f"{shard.source}-{shard.place.shard:05d}" for shard in some]
            tasks = [
                Task(output, tokenization.tokenize_shard, (config, shard, split, folders[0]))
                for shard, output in zip(some, outputs, strict=True)
            ]
            results = run(tasks, config.num_workers, enough)
            return [Tokenized(*values) for values in zip(some, outputs, results, strict=False)]

        if split.from_shard is not None:
            train += tokenize(shards[: split.from_shard], "train")
            valid += tokenize(shards[split.from_shard :], "valid")
        else:
            # A share of every shard is held out, so what is enough for training has its held-out documents with it. Held-out
            # documents at the end need all shards.
            both = tokenize(shards, "train" if split.share is not None else "all")
            train += both
            valid += both
    return [item for item in train if item.result["train"]["documents"]], [item for item in valid if item.result["valid"]["documents"]]


def valid_budget(config: DataConfig) -> int | None:
    """Held-out tokens of each source, None for any number."""
    most = config.validation.max_tokens
    return None if most is None else max(1, most // len(config.all_sources))
