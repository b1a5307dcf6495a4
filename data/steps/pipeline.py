"""The steps of a preparation in order: clean -> deduplicate -> shuffle -> split -> train a tokenizer -> tokenize.

Every step leaves its files and results in the work folder, so that a start after a kill goes on where the last one was.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.config import DataConfig, ValidationConfig
from data.corpora import sources
from data.documents import DataError
from data.steps import clean, tokenization
from data.steps.document_files import DocumentFile
from data.steps.holdout import plan_holdout
from data.steps.shuffle import shuffle
from data.steps.tasks import Result, Runner, Task, execute
from data.tokenizers import adoption, tokenizer_folder, trainers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """The ids of some documents of one split and source: of a shard, or what a budget has room for of them."""

    prefix: Path
    """Of its files in the work folder."""
    source: int
    counts: dict[str, int]
    """Its documents, tokens and chars."""
    name: str = ""
    """In the store, once it is there."""


@dataclass(frozen=True)
class Steps:
    """Results of all steps: what the store and its report are made of."""

    cleaned: list[Result]
    copies: Result | None
    tokenizer: Path
    pairs: dict[str, list[Pair]]
    """Those that hold documents, in order. The last ones may go beyond the budget."""
    shards_without_gigatoken: int


def run_steps(config: DataConfig, work: Path, downloads: Path, run: Runner, check_unchanged: Callable[[], None]) -> Steps:
    """Run what is not done yet of all steps; `check_unchanged` is called once the text is read: the later steps may take hours.

    Raises:
        DataError: If the input, the rules or the machine do not allow it.
    """
    tokenizer = work / "tokenizer"
    if config.tokenizer.kind == "existing":  # What is wrong with it is said before the work.
        _provide_tokenizer(config, tokenizer)
    parts = sources.parts(config, downloads)
    told = [0 if config.mixes_sources else part.source for part in parts]
    where = {source: f"{config.source_names[source]}: " if len(set(told)) > 1 else "" for source in sorted(set(told))}
    if config.validation.last_shards is not None and not config.shuffle:  # No part becomes more than one: too few are told before the work.
        for source in where:
            plan_holdout(config.validation, [1] * told.count(source), 0, where[source])
    prefixes = [work / "1-clean" / f"{index:05d}" for index in range(len(parts))]
    tasks = [Task(prefix, clean.clean_part, (config, part)) for prefix, part in zip(prefixes, parts, strict=True)]
    cleaned = run(tasks, config.num_workers)
    check_unchanged()
    clean.check_bad_input(cleaned, config)
    copies: Result | None = None
    keeps: list[Path | None] = [None] * len(parts)
    if config.deduplicate is not None:
        masks = work / "2-copies" / "all"
        (copies,) = run([Task(masks, clean.drop_copies, (config, prefixes))], 1)
        keeps = [clean.keep_path(masks, prefix) for prefix in prefixes]
    sizes = copies or {unit: [result[unit] for result in cleaned] for unit in ("documents", "chars")}
    _check_every_source(config, [part.source for part in parts], cleaned, sizes["documents"])
    files = [DocumentFile(*values) for values in zip(prefixes, keeps, told, sizes["documents"], sizes["chars"], strict=True)]
    texts: list[list[DocumentFile]] = []
    for source in where:
        of_source = [file for file in files if file.source == source]
        texts.append(_split(config.validation, shuffle(config, of_source, work, run) if config.shuffle else of_source, where[source]))
    _provide_tokenizer(config, tokenizer, [shard for text in texts for shard in text], sum(sizes["chars"]))
    return Steps(cleaned, copies, tokenizer, *_tokenize(config, texts, tokenizer, work / "4-tokens", run))


def _check_every_source(config: DataConfig, sources_of_parts: Sequence[int], cleaned: Sequence[Result], left: Sequence[int]) -> None:
    for source, name in enumerate(config.source_names):
        read = sum(result["documents_in"] for of, result in zip(sources_of_parts, cleaned, strict=True) if of == source)
        if not sum(documents for of, documents in zip(sources_of_parts, left, strict=True) if of == source):
            fate, advice = "dropped by data.clean", "Check the text and the rules"
            if len(config.source_names) > 1:
                fate, advice = f"{fate} or copies of another source's", f"{advice}, or remove the source"
            why = f"all {read} documents are {fate}" if read else "none of it could be read"
            raise DataError(f"{config.name}: no text is left of {name}: {why}. {advice}.")


def _split(rule: ValidationConfig, files: Sequence[DocumentFile], where: str) -> list[DocumentFile]:
    """Number the documents and characters of a source's files through, and decide which are held out. `where` begins a message."""
    shards: list[DocumentFile] = []
    num_documents = num_chars = 0
    for file in files:
        if file.documents:
            shards.append(replace(file, number=len(shards), first_document=num_documents, first_char=num_chars))
            num_documents += file.documents
            num_chars += file.chars
    logger.info("%s%d documents in %d shards", where, num_documents, len(shards))
    holdout = plan_holdout(rule, [shard.documents for shard in shards], num_chars, where)
    return [replace(shard, holdout=holdout) for shard in shards]


def _provide_tokenizer(config: DataConfig, folder: Path, shards: Sequence[DocumentFile] = (), num_chars: int = 0) -> None:
    """Make the tokenizer unless it is there; `shards` hold the text for one that is trained."""
    task = Task(folder, make_tokenizer, (config, shards, num_chars))
    if not task.result_path.is_file():
        execute(task)


def make_tokenizer(config: DataConfig, shards: Sequence[DocumentFile], num_chars: int, folder: Path) -> Result:
    """Train the tokenizer or take it over."""
    shutil.rmtree(folder, ignore_errors=True)
    if config.tokenizer.kind == "existing":
        adoption.adopt(config.tokenizer, folder)
    else:
        texts = (document.text for shard in shards for split, document in shard.read_splits() if split == "train")
        trainers.train(texts, config.tokenizer, folder, num_chars)
    made = tokenizer_folder.load(folder)
    logger.info("tokenizer: %s, %d tokens", config.tokenizer.kind, made.vocab_size)
    return {"vocab_size": made.vocab_size}


def _tokenize(
    config: DataConfig, texts: Sequence[Sequence[DocumentFile]], tokenizer: Path, output: Path, run: Runner
) -> tuple[dict[str, list[Pair]], int]:
    """Tokenize the shards that the budgets ask for: the pairs of each split, and how many shards gigatoken failed.

    `texts` are the shards of each source that is told apart, `output` is the folder for the ids.
    """
    pairs: dict[str, list[Pair]] = {"train": [], "valid": []}
    without_gigatoken = 0
    for shards in texts:
        source, holdout = shards[0].source, shards[0].holdout
        left = config.max_train_tokens
        if left is not None:
            left -= sum(pair.counts["tokens"] for pair in pairs["train"])
            if left <= 0:
                raise DataError(
                    f"data.max_train_tokens = {config.max_train_tokens} is reached before {config.source_names[source]} begins, of which"
                    " nothing would be trained on. Set data.shuffle=true, or give the sources weights."
                )
        first_held_out = next((index for index, shard in enumerate(shards) if shard.first_document == holdout.from_document), None)
        if first_held_out is not None:
            held_out = config.validation.max_tokens if config.mixes_sources else valid_budget(config)
            stages = [(shards[:first_held_out], _enough("train", left)), (shards[first_held_out:], _enough("valid", held_out))]
        elif holdout.share:  # Of every shard, so what is enough for training has its held-out documents with it.
            stages = [(shards, _enough("train", left))]
        else:  # The held-out documents are at the end, and begin inside a shard.
            stages = [(shards, None)]
        for some, enough in stages:
            prefixes = [output / f"{shard.source}-{shard.number:05d}" for shard in some]
            calls = [(config, shard, tokenizer) for shard in some]
            tasks = [Task(prefix, tokenization.tokenize_shard, call) for prefix, call in zip(prefixes, calls, strict=True)]
            results = run(tasks, config.num_workers, enough)
            without_gigatoken += sum("without_gigatoken" in result for result in results)
            for prefix, result in zip(prefixes, results, strict=False):
                for name, counts in result["pairs"].items():
                    split, _, mixed = name.partition("-")
                    if counts["documents"]:
                        pairs[split].append(Pair(tokenization.split_prefix(prefix, name), int(mixed or source), counts))
    return pairs, without_gigatoken


def _enough(split: str, budget: int | None) -> Callable[[list[Result]], bool] | None:
    """Whether the first shards fill the budget of a split; None where there is none, and all shards are needed."""
    return None if budget is None else lambda results: sum(result[split]["tokens"] for result in results) >= budget


def valid_budget(config: DataConfig) -> int | None:
    """Held-out tokens of each source, None for any number."""
    most = config.validation.max_tokens
    return None if most is None else max(1, most // len(config.all_sources))
