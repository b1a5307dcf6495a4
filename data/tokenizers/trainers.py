"""Train a tokenizer on texts. The same texts in the same order give the same files."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.config import END_OF_TEXT, TokenizerConfig
from data.documents import DataError
from data.packages import require
from data.tokenizers import sentencepiece_model, tokenizer_folder
from data.tokenizers.encoders import EVERY_CHARACTER

logger = logging.getLogger(__name__)

UNKNOWN = "<unk>"
_MAX_PIECE_CHARS = 16
_PASSAGE_CHARS = 4096
# Of a byte_bpe, measured with Han text of 1 to 12 million characters: words without spaces are long, and hardly one comes again.
_MEMORY_PER_CHAR, _SECONDS_PER_CHAR = 250, 9e-6
_SENTENCE_BYTES = 4000  # sentencepiece leaves out longer ones; its own default is 4192.


def train(texts: Iterable[str], config: TokenizerConfig, folder: Path, num_chars: int = 0) -> None:
    """Train a tokenizer of `config.kind` and save it as `folder`.

    Args:
        texts: All that may be used of it.
        config: What to train.
        folder: Where to.
        num_chars: About how many characters the texts have: of more than `config.training_chars` a sample is taken.

    Raises:
        DataError: If there is too little text for the vocabulary, or a package is missing.
    """
    if num_chars > config.training_chars:
        texts = sample(texts, config.training_chars / num_chars)
        logger.info("the tokenizer is trained on passages of about %d of %d characters", config.training_chars, num_chars)
    seen = min(num_chars, config.training_chars)
    gib, minutes = seen * _MEMORY_PER_CHAR / 2**30, seen * _SECONDS_PER_CHAR / 60
    if config.kind == "byte_bpe" and gib >= 1:
        said = "a byte_bpe of %d characters takes up to %.0f GiB of memory and %.0f minutes; data.tokenizer.training_chars bounds both"
        logger.info(said, seen, gib, minutes)
    _TRAINERS[config.kind](texts, config, folder)


def sample(texts: Iterable[str], share: float) -> Iterator[str]:
    """Yield passages that make up a share of the texts, evenly from all over them."""
    due = 0.5
    for text in texts:
        for start in range(0, len(text), _PASSAGE_CHARS):
            passage = text[start : start + _PASSAGE_CHARS]
            due += share * len(passage) / _PASSAGE_CHARS
            if due >= 1:
                due -= 1
                yield passage


def _train_byte_bpe(texts: Iterable[str], config: TokenizerConfig, folder: Path) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    assert config.vocab_size is not None, "checked by TokenizerConfig"
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < config.vocab_size:
        _refuse_size(config, f"it is only enough for {backend.get_vocab_size()} tokens")
    tokenizer_folder.save(backend, folder, {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
    try:
        backend.model.save(str(folder))
    except Exception as error:  # the library raises bare Exceptions
        raise OSError(f"{folder}: {error}") from error


def _train_characters(texts: Iterable[str], config: TokenizerConfig, folder: Path) -> None:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    if config.vocab_size is not None:
        ranked = ranked[: config.vocab_size - 2]
    vocabulary = {token: index for index, token in enumerate([END_OF_TEXT, UNKNOWN, *ranked])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(EVERY_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([END_OF_TEXT, UNKNOWN])
    settings = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": UNKNOWN}
    tokenizer_folder.save(backend, folder, settings)


def _train_sentencepiece(texts: Iterable[str], config: TokenizerConfig, folder: Path) -> None:
    sentencepiece = require("sentencepiece", "a sentencepiece tokenizer")
    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=config.kind.removeprefix("sentencepiece_"),
            vocab_size=config.vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            # Text comes back as it went in: no normalisation, and no space that was not there.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentencepiece_length=_MAX_PIECE_CHARS,
            bos_id=-1,
            unk_id=1,
            eos_id=0,
            eos_piece=END_OF_TEXT,
            unk_piece=UNKNOWN,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        _refuse_size(config, _why_refused(str(error)))
    backend = sentencepiece_model.convert(model.getvalue(), "the trained model")
    tokenizer_folder.save(backend, folder, {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": UNKNOWN})
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, cut where they are too long for sentencepiece."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _SENTENCE_BYTES // 4):  # a character has at most four bytes
                yield line[start : start + _SENTENCE_BYTES // 4]


def _why_refused(message: str) -> str:
    """What sentencepiece's error means to someone who chose a vocabulary size."""
    if "required_chars" in message:
        return "its characters and the 256 bytes alone need more"
    most = re.search(r"value <= (\d+)", message)
    return f"it is only enough for {most[1]} tokens" if most else " ".join(message.split())


def _refuse_size(config: TokenizerConfig, why: str) -> None:
    raise DataError(
        f"data.tokenizer.vocab_size = {config.vocab_size} does not fit the training text: {why}. Change the size or bring more text."
    )


_TRAINERS: dict[str, Callable[[Iterable[str], TokenizerConfig, Path], None]] = {
    "byte_bpe": _train_byte_bpe,
    "characters": _train_characters,
    "sentencepiece_bpe": _train_sentencepiece,
    "sentencepiece_unigram": _train_sentencepiece,
}
