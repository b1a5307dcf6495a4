"""The steps of a preparation in order: clean -> deduplicate -> shuffle -> split -> train a tokenizer -> tokenize.

Every step leaves its files and results in the work folder, so that a start after a kill goes on where the last one was.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import cleaning, existing_tokenizer, sources, tokenizer, tokenizing, train_tokenizer
from data.config import DataConfig
from data.shuffling import Spooled, shuffle
from data.split import Place, Split, plan_split
from data.tasks import Result, Runner, Task, write_json
from data.tokenizing import Shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenized:
    """What came of one shard."""

    shard: Shard
    output: Path
    """Prefix of the pairs of both splits."""
    result: Result
    """Per split: documents, tokens, chars."""


@dataclass(frozen=True)
class Steps:
    """Results of all steps: what the store and its report are made of."""

    cleaned: list[Result]
    copies: Result | None
    split: Split
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
    tasks = [Task(prefix, cleaning.clean_part, (config, part)) for prefix, part in zip(prefixes, parts, strict=True)]
    cleaned = run(tasks, config.num_workers)
    cleaning.check_bad_input(cleaned, config)
    copies: Result | None = None
    keeps: list[Path | None] = [None] * len(parts)
    if config.deduplicate is not None:
        masks = work / "2-copies" / "all"
        (copies,) = run([Task(masks, cleaning.drop_copies, (config, prefixes))], 1)
        keeps = [cleaning.keep_path(masks, prefix) for prefix in prefixes]
    sizes = copies or {unit: [result[unit] for result in cleaned] for unit in ("documents", "chars")}
    streams = [part.source if config.is_weighted else 0 for part in parts]
    spooled = [Spooled(*values) for values in zip(prefixes, keeps, streams, sizes["documents"], sizes["chars"], strict=True)]
    shards, end = _place(shuffle(config, spooled, work, run) if config.shuffle else spooled)
    split = plan_split(config.validation, end.first_document, end.first_char, end.shard)
    folder = work / "tokenizer"
    make_tokenizer(config, shards, split, folder)
    train, valid = _tokenize(config, (shards, split), (folder, work / "4-tokens"), run)
    return Steps(cleaned, copies, split, folder, train, valid)


def _place(spooled: Sequence[Spooled]) -> tuple[list[Shard], Place]:
    """Number the documents and characters of all shards through; the second value is the place behind the last one."""
    shards, place = [], Place(0, 0, 0)
    for item in spooled:
        if item.documents:
            shards.append(Shard(item.prefix, item.keep, place, item.stream))
            place = Place(place.shard + 1, place.first_document + item.documents, place.first_char + item.chars)
    logger.info("%d documents in %d shards", place.first_document, place.shard)
    return shards, place


def make_tokenizer(config: DataConfig, shards: Sequence[Shard], split: Split, folder: Path) -> None:
    """Train or take over the tokenizer, unless an earlier start did."""
    done = folder.with_name("tokenizer.done.json")
    if done.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if config.tokenizer.kind == "existing":
        existing_tokenizer.adopt(config.tokenizer, folder)
    else:
        train_tokenizer.train(tokenizing.training_texts(shards, split), config.tokenizer, folder)
    made = tokenizer.load(folder)
    logger.info("tokenizer: %s, %d tokens", config.tokenizer.kind, made.vocab_size)
    write_json(done, {"vocab_size": made.vocab_size})


def _tokenize(
    config: DataConfig, shards: tuple[Sequence[Shard], Split], folders: tuple[Path, Path], run: Runner
) -> tuple[list[Tokenized], list[Tokenized]]:
    """Tokenize the shards that the budgets ask for, and return those of each split. `folders`: the tokenizer's, and for the ids."""
    every, split = shards
    folder, work = folders
    wanted = {"train": config.max_train_tokens, "valid": config.validation.max_tokens}

    def tokenize(some: Sequence[Shard], budget: str) -> list[Tokenized]:
        def enough(results: list[Result]) -> bool:
            limit = wanted.get(budget)
            return limit is not None and sum(result[budget]["tokens"] for result in results) >= limit

        outputs = [work / f"{shard.place.shard:05d}" for shard in some]
        tasks = [
            Task(output, tokenizing.tokenize_shard, (config, shard, split, folder)) for shard, output in zip(some, outputs, strict=True)
        ]
        results = run(tasks, config.num_workers, enough)
        return [Tokenized(*values) for values in zip(some, outputs, results, strict=False)]

    if split.from_shard is not None:
        train = tokenize([shard for shard in every if shard.place.shard < split.from_shard], "train")
        valid = tokenize([shard for shard in every if shard.place.shard >= split.from_shard], "valid")
    else:
        # A share of every shard is held out, so what is enough for training has its held-out documents with it. Held-out
        # documents at the end need all shards.
        train = tokenize(every, "train" if split.share is not None else "all")
        valid = train
    return [item for item in train if item.result["train"]["documents"]], [item for item in valid if item.result["valid"]["documents"]]
