"""One source of text in a `data` section: named corpora and paths, what a document is in them, chapters, the generated task."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from data.cleaning_config import convert_rules
from ds_configs.errors import FieldError, Report, did_you_mean, require
from ds_configs.typed import FAILED, Bounded, Count

HUB = "hub:"  # A path that begins so is a dataset of the Hugging Face hub.
KNOWN_CORPORA = ("hongloumeng", "chinese-poetry", "reverse")  # What they are: `data/corpora/named.py`.


@dataclass(frozen=True, kw_only=True)
class ChaptersConfig:
    """Split each text at its chapter headings (第一回 ...) and keep chapters `first` to `last`; each becomes a document."""

    first: Count = 1
    last: int | None = None
    absent: tuple[int, ...] = ()
    """Numbers that the text does not have. Any other that is missing between two headings ends the preparation."""

    def __post_init__(self) -> None:
        if self.last is not None and self.last < self.first:
            raise FieldError("first", f" = {self.first}, last = {self.last}; last is not before first.")


@dataclass(frozen=True, kw_only=True)
class ReverseConfig:
    """The generated task: random strings, a separator, and the same string backwards (abc>cba)."""

    num_samples: Count = 100_000
    min_length: Count = 1
    max_length: int = 16
    alphabet: str = "abcdefghijklmnopqrstuvwxyz"
    separator: str = ">"

    def __post_init__(self) -> None:
        if self.max_length < self.min_length:
            raise FieldError("max_length", f" = {self.max_length} is less than min_length = {self.min_length}.")
        if len(set(self.alphabet)) < 2 or len(set(self.alphabet)) < len(self.alphabet):
            raise FieldError("alphabet", f' = "{self.alphabet}"; it needs two or more characters, none of them twice.')
        if len(self.separator) != 1 or self.separator in self.alphabet:
            raise FieldError("separator", f' = "{self.separator}"; it must be one character that is not in the alphabet.')


def check_rules(rules: tuple[dict[str, Any], ...] | None, name: str, report: Report) -> Any:
    """The list of cleaning rules under the dotted key `name`, or FAILED once its mistakes are reported."""
    return rules if rules is None or len(convert_rules(rules, name, report)) == len(rules) else FAILED


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The keys that say which text is read and how, of a section with one source or of each of several.

    `corpus` names a known corpus; `path` is a file, folder, pattern or list of these of one's own. With both, the named corpus
    is read from that path and nothing is fetched.
    """

    corpus: str | None = None
    path: str | tuple[str, ...] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    """Our name of a field (text, title, author ...) -> its name in the files."""
    text_documents: Literal["file", "line", "paragraph"] = "file"
    """What a document is in a text file."""
    errors: Literal["refuse", "replace"] = "refuse"
    """Bytes that do not fit a file's encoding, and zero characters, cost the record they are in, or are replaced by U+FFFD and counted."""
    template: str | None = None
    """How a document's text is made of its fields: "{title}\\n{author}\\n{text}". None: the text alone."""
    chapters: ChaptersConfig | None = None
    reverse: ReverseConfig | None = None
    clean: tuple[dict[str, Any], ...] | None = field(default=None, metadata={"check": check_rules})
    """Cleaning rules in order, see docs/cleaning.md. None: for a source of several those of the section, for a section the default rules;
    an empty list: none."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig(TextConfig):
    """Where documents come from."""

    weight: Annotated[float, Bounded(float, 0, exclusive=True)] | None = None
    """Share of training samples from this source, relative to the other sources' weights. None: in proportion to size."""

    def __post_init__(self) -> None:
        if not (self.corpus or self.path):
            raise FieldError("corpus", ', path: none given; name a corpus ("hongloumeng") or a path of your own text.')
        if self.corpus is not None and self.corpus not in KNOWN_CORPORA:
            guess = did_you_mean(self.corpus, KNOWN_CORPORA)
            raise FieldError("corpus", f' = "{self.corpus}" is not known. {guess} Your own text goes into data.path.')
        if self.reverse is not None and self.corpus != "reverse":
            raise FieldError("reverse", ': only the corpus "reverse" has these parameters.')
        require(self, "template", self.template is None or self.chapters is None, "null: with chapters a document is a chapter as it is")
        if self.corpus == "reverse":
            for name in ("path", "template", "chapters"):
                require(self, name, getattr(self, name) is None, 'null: the corpus "reverse" is generated')

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths as a tuple, none for a fetched corpus."""
        if self.path is None:
            return ()
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """A short name for folders and messages."""
        return self.corpus or name_of_path(self.paths[0])


def name_of_path(path: str) -> str:
    """The last part of a path without its ending, as a name for folders."""
    stem = path.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-") or "text"
