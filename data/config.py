"""The `data` section of a configuration: which text, how it is cleaned, split, tokenized, and served in windows.

Standard library only: a command that merely checks a configuration must not wait for torch.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

END_OF_TEXT = "<|endoftext|>"

TokenizerKind = Literal["byte_bpe", "characters", "sentencepiece_bpe", "sentencepiece_unigram", "existing"]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes token ids. `existing` takes a tokenizer from `path`; the other kinds are trained on the training split."""

    kind: TokenizerKind
    vocab_size: int | None = None
    """Size of a trained vocabulary, special tokens included; for `characters` the most it may have (rarer ones become <unk>)."""
    path: str | None = None
    """A tokenizer.json, a Hugging Face folder or a sentencepiece .model file."""
    training_chars: int = 50_000_000
    """A trained tokenizer sees documents up to this many characters of the training split."""
    add_bos: bool = False
    """Put the begin-of-text token before each document."""
    add_eos: bool = True
    """Put the end-of-text token behind each document."""
    eos_token: str | None = None
    """Of an existing tokenizer that does not say itself which of its tokens ends a text."""
    bos_token: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "existing") != (self.path is not None):
            raise ValueError(
                f'path = {self.path}; kind "existing" needs the path of a tokenizer, the other kinds are trained and take none.'
            )
        trained = self.kind not in ("existing", "characters")
        if trained and self.vocab_size is None:
            raise ValueError(f'vocab_size is missing; kind "{self.kind}" is trained to a size, e.g. 5000.')
        if self.kind == "existing" and self.vocab_size is not None:
            raise ValueError(f"vocab_size = {self.vocab_size}; an existing tokenizer has its own. Remove the key.")
        if self.kind != "existing" and (self.eos_token or self.bos_token):
            raise ValueError(f"eos_token = {self.eos_token}, bos_token = {self.bos_token}; only an existing tokenizer needs to be told.")
        smallest = {"byte_bpe": 257, "sentencepiece_bpe": 300, "sentencepiece_unigram": 300}.get(self.kind, 3)
        if self.vocab_size is not None and self.vocab_size < smallest:
            raise ValueError(f"vocab_size = {self.vocab_size}; {self.kind} needs at least {smallest}.")
        if self.training_chars < 1:
            raise ValueError(f"training_chars = {self.training_chars}; it must be 1 or more.")


@dataclass(frozen=True, kw_only=True)
class ChaptersConfig:
    """Split each text at its chapter headings (第一回 ...) and keep chapters `first` to `last`; each becomes a document."""

    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if self.first < 1 or (self.last is not None and self.last < self.first):
            raise ValueError(f"first = {self.first}, last = {self.last}; chapters count from 1 and last is not before first.")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is held out of training: the last documents (chapters), a share of all documents, or the last shards."""

    last_documents: int | None = None
    ratio: float | None = None
    last_shards: int | None = None
    max_tokens: int | None = None
    """Stop the held-out split after this many tokens; what is beyond is used by neither split."""

    def __post_init__(self) -> None:
        chosen = [name for name in ("last_documents", "ratio", "last_shards") if getattr(self, name) is not None]
        if len(chosen) != 1:
            said = " and ".join(chosen) if chosen else "none of them"
            raise ValueError(f"last_documents, ratio, last_shards: {said} given; exactly one says what is held out.")
        for name in ("last_documents", "last_shards", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}; it must be 1 or more.")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio = {self.ratio}; it must be between 0 and 1, e.g. 0.1.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One corpus and the way to its token store.

    `corpus` names a known corpus; `path` is a file, folder or pattern of one's own. With both, the named corpus is read from
    that path and nothing is fetched. `store` is the prefix of a finished .bin/.idx pair made elsewhere.
    """

    seq_length: int
    tokenizer: TokenizerConfig
    corpus: str | None = None
    path: str | None = None
    store: str | None = None
    chapters: ChaptersConfig | None = None
    validation: ValidationConfig = field(default_factory=lambda: ValidationConfig(ratio=0.05))
    tail: Literal["drop", "wrap"] = "drop"
    """What becomes of the last tokens of an epoch that do not fill a window: left out, or continued with the first tokens."""
    directory: str = "data/stores"

    def __post_init__(self) -> None:
        if self.seq_length < 1:
            raise ValueError(f"seq_length = {self.seq_length}; it must be 1 or more.")
        if self.store is not None and (self.corpus or self.path):
            raise ValueError(f'store = "{self.store}" is finished data; corpus and path cannot be given beside it.')
        if not (self.corpus or self.path or self.store):
            raise ValueError(
                'corpus, path, store: none given; name a corpus ("hongloumeng"), a path of your own text, or a store\'s prefix.'
            )

    @property
    def tokenizer_vocab_size(self) -> int | None:
        """Size of the vocabulary as far as the section tells: None for an existing tokenizer and for characters."""
        return None if self.tokenizer.kind in ("existing", "characters") else self.tokenizer.vocab_size

    @property
    def name(self) -> str:
        """A short name for folders and messages."""
        if self.corpus:
            return self.corpus
        stem = (self.path or self.store or "").rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]
        return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-") or "text"

    def rules(self) -> dict[str, Any]:
        """All that decides what the store holds, as JSON values: two configs with equal rules share a store.

        How windows are cut from it (`seq_length`, `tail`) and where it and the text lie do not belong to it; the text itself is
        told by its hash.
        """
        from dataclasses import asdict

        rules = asdict(self)
        for name in ("seq_length", "tail", "directory", "path"):
            del rules[name]
        return rules
