"""The `data` section of a configuration: which text, how it is cleaned, split, tokenized, and served in windows.

A command that merely checks a configuration must not wait for torch: nothing here imports it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from data.cleaning_config import DeduplicateConfig
from data.source_config import SourceConfig, TextConfig, name_of_path
from ds_configs.errors import FieldError, require
from ds_configs.typed import Bounded, Count, Share

END_OF_TEXT = "<|endoftext|>"
BLOCK_SAMPLES = 1000
"""Weights of sources are kept in every run of so many samples, each of which has its own order."""
Int32Count = Annotated[int, Bounded(int, 1, (1 << 31) - 1)]  # What tokenizers and Parquet can count.


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes token ids. `existing` takes a tokenizer from `path`; the other kinds are trained on the training split."""

    kind: Literal["byte_bpe", "characters", "sentencepiece_bpe", "sentencepiece_unigram", "existing"]
    vocab_size: Int32Count | None = None
    """Size of a trained vocabulary, special tokens included; for `characters` the most it may have (rarer ones become <unk>)."""
    path: str | None = None
    """A tokenizer.json, a Hugging Face folder or a sentencepiece .model file."""
    training_chars: Count = 50_000_000
    """A trained tokenizer sees about this many characters, passages from all over the training split."""
    add_bos: bool = False
    """Put the begin-of-text token before each document."""
    add_eos: bool = True
    """Put the end-of-text token behind each document."""
    eos_token: str | None = None
    """Of an existing tokenizer that does not say itself which of its tokens ends a text."""
    bos_token: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "existing") != (self.path is not None):
            raise FieldError(
                "path", f' = {self.path}; kind "existing" needs the path of a tokenizer, the other kinds are trained and take none.'
            )
        if self.kind not in ("existing", "characters") and self.vocab_size is None:
            raise FieldError("vocab_size", f' is missing; kind "{self.kind}" is trained to a size, e.g. 5000.')
        if self.kind == "existing" and self.vocab_size is not None:
            raise FieldError("vocab_size", f" = {self.vocab_size}; an existing tokenizer has its own. Remove the key.")
        if self.kind != "existing" and (self.eos_token or self.bos_token):
            raise FieldError(
                "eos_token", f" = {self.eos_token}, bos_token = {self.bos_token}; only an existing tokenizer needs to be told."
            )
        smallest = {"byte_bpe": 257, "sentencepiece_bpe": 300, "sentencepiece_unigram": 300}.get(self.kind, 3)
        if self.vocab_size is not None and self.vocab_size < smallest:
            raise FieldError("vocab_size", f" = {self.vocab_size}; {self.kind} needs at least {smallest}.")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is held out of training: the last documents (chapters), a share of the text, or the last shards.

    Of several sources a part of each is held out; what is shuffled into one text counts as one.
    """

    last_documents: Count | None = None
    ratio: float | None = None
    """Share of the documents, chosen by a hash of their text. Of a corpus of few documents the end of the text is cut off instead."""
    last_shards: Count | None = None
    max_tokens: Count | None = None
    """Stop the held-out split after this many tokens, an equal part of them for each source; the rest is used by neither split."""

    def __post_init__(self) -> None:
        chosen = [name for name in ("last_documents", "ratio", "last_shards") if getattr(self, name) is not None]
        if len(chosen) != 1:
            said = " and ".join(chosen) or "none of them"
            raise FieldError("last_documents", f", ratio, last_shards: {said} given; exactly one says what is held out.")
        require(self, "ratio", self.ratio is None or 0 < self.ratio < 1, "between 0 and 1, e.g. 0.1")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Also write the training tokens as Parquet rows of `length` ids, documents end to end."""

    length: Int32Count


@dataclass(frozen=True, kw_only=True)
class DataConfig(TextConfig):
    """One corpus and the way to its token store.

    The text is one of: `corpus` and/or `path` with the keys that belong to them (see `TextConfig`); `sources`, a list of
    such; or `store`, the prefix of a finished .bin/.idx pair made elsewhere.
    """

    seq_length: Count
    tokenizer: TokenizerConfig
    sources: tuple[SourceConfig, ...] | None = None
    store: str | None = None
    deduplicate: DeduplicateConfig | None = None
    shuffle: bool = False
    """Put all documents into one seeded random order before they are cut into shards."""
    shuffle_seed: int = 0
    shard_mib: Count = 64
    """About how much text goes into one shard; a shard is the unit of parallel work and of holding out."""
    documents: Literal["parquet"] | None = None
    """Also keep the cleaned documents, as Parquet files beside the tokens."""
    validation: ValidationConfig = field(default_factory=lambda: ValidationConfig(ratio=0.05))
    max_train_tokens: Count | None = None
    """Stop the training split after this many tokens."""
    pack: PackConfig | None = None
    max_bad_ratio: Share = 0.01
    """Share of the input, by records and by bytes, that may be unreadable before the preparation fails."""
    windows: Literal["stream", "documents"] = "stream"
    """`stream` cuts windows anywhere, elsewhere in each epoch; `documents` begins each with a document, or goes on with a longer one."""
    tail: Literal["drop", "wrap"] = "drop"
    """What becomes of the last tokens of an epoch that do not fill a window: left out, or continued with the first tokens."""
    num_workers: Count = 1
    directory: str = "data/stores"

    def __post_init__(self) -> None:
        text = [name for name in ("corpus", "path") if getattr(self, name) is not None]
        given = [*(["/".join(text)] if text else []), *(name for name in ("sources", "store") if getattr(self, name) is not None)]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise FieldError("corpus", f"/path, sources, store: {said} given; exactly one says where the tokens come from.")
        if self.sources is not None:
            if not self.sources:
                raise FieldError("sources", " = []; name at least one.")
            unset = TextConfig(clean=self.clean)
            for item in dataclasses.fields(TextConfig):
                if getattr(self, item.name) != getattr(unset, item.name):
                    raise FieldError(item.name, ": give it to each of the sources that it is for.")
            if len({source.weight is None for source in self.sources}) > 1:
                raise FieldError("sources", ": either all of them have a weight or none.")
            samples_of_weights([source.weight for source in self.sources if source.weight is not None])
        if self.store is not None and self.tokenizer.kind != "existing":
            raise FieldError(
                "tokenizer.kind", f' = "{self.tokenizer.kind}"; a finished store was made with a tokenizer: kind "existing" and its path.'
            )
        if self.max_train_tokens is not None and self.is_weighted:
            raise FieldError(
                "max_train_tokens", f" = {self.max_train_tokens}: with weighted sources the weights and training.tokens say what is read."
            )
        if self.store is not None and self.validation.last_shards is not None:
            raise FieldError("validation.last_shards", ": a finished store is one shard. Use last_documents or ratio.")
        require(self, "shuffle_seed", 0 <= self.shuffle_seed < 2**63, "0 or more and below 2**63")
        _ = self.all_sources  # each checks itself as it is made

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """Where the documents come from, each with the rules that it is cleaned by; nothing for a finished store."""
        if self.store is not None:
            return ()
        if self.sources is not None:
            return tuple(dataclasses.replace(source, clean=self.clean) if source.clean is None else source for source in self.sources)
        return (SourceConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(TextConfig)}),)

    @property
    def is_weighted(self) -> bool:
        """Whether training mixes the sources by weight, each in a stream of its own."""
        return self.sources is not None and self.sources[0].weight is not None

    @property
    def mixes_sources(self) -> bool:
        """Whether a common shuffle makes one text of several sources."""
        return self.sources is not None and len(self.sources) > 1 and self.shuffle and not self.is_weighted

    @property
    def source_names(self) -> list[str]:
        """A short name for each source, no two the same."""
        names = [source.name for source in self.all_sources]
        return [name if names.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(names, start=1)]

    @property
    def name(self) -> str:
        """A short name for folders and messages."""
        return name_of_path(self.store) if self.store is not None else "-".join(source.name for source in self.all_sources)[:60]


def samples_of_weights(weights: Sequence[float]) -> list[int]:
    """Samples of each source in a block: whole numbers that add up, by largest remainders.

    Raises:
        FieldError: If one would get none.
    """
    exact = [weight / sum(weights) * BLOCK_SAMPLES for weight in weights]
    counts = list(map(int, exact))
    for source in sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])[: BLOCK_SAMPLES - sum(counts)]:
        counts[source] += 1
    if not all(counts):
        raise FieldError(
            "sources",
            f": the weights {list(weights)} differ so much that the least would get less than one sample in {BLOCK_SAMPLES}."
            " Raise it, or remove that source.",
        )
    return counts
