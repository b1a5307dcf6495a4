"""Turn a sentencepiece .model into a `tokenizers` backend that gives the same ids.

The rules are sentencepiece's: pieces with scores, of two neighbours the pair whose join has the highest score is merged
first (BPE), or the most probable cut is taken (unigram); what no piece covers falls back to bytes.
"""

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data.documents import DataError
from data.packages import require

_SPACE = "\u2581"  # How sentencepiece writes a space.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2


def convert(content: bytes, name: str) -> Tokenizer:
    """Return the backend of a model's content; `name` is for messages.

    Raises:
        DataError: If it is not a sentencepiece model, or of a kind that cannot be converted, or sentencepiece is not installed.
    """
    proto = _parse(content, name)
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(
            f"{name}: writes spaces behind words (treat_whitespace_as_suffix), which cannot be converted. Give a tokenizer.json."
        )
    model = {_UNIGRAM: _unigram, _BPE: _bpe}.get(proto.trainer_spec.model_type)
    if model is None:
        raise DataError(f"{name}: a sentencepiece model of words or characters; BPE and unigram are known. Give a tokenizer.json.")
    backend = Tokenizer(model(proto))
    if model is _unigram:
        backend.pre_tokenizer = _apart(_names(proto, _UNKNOWN, _CONTROL, _UNUSED, _BYTE))
    _set_text_rules(backend, proto)
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in _names(proto, _UNKNOWN, _CONTROL)])
    # Looked for when the whole text has got its prefix and lost its spaces, which parts of it would otherwise get and lose once more.
    backend.add_tokens([AddedToken(symbol, normalized=True, special=False) for symbol in _names(proto, _USER_DEFINED)])
    return backend


def _parse(content: bytes, name: str) -> Any:
    require("sentencepiece", "a sentencepiece tokenizer")
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's error class differs between its implementations
        raise DataError(f"{name}: not a sentencepiece model ({error}).") from error
    if not _names(proto, _UNKNOWN):
        raise DataError(f"{name}: not a sentencepiece model (no pieces, or none for the unknown).")
    return proto


def _names(proto: Any, *types: int) -> list[str]:
    return [piece.piece for piece in proto.pieces if piece.type in types]


def _prefix(symbols: list[str]) -> Any:
    """Put a space before a text. A text that is nothing but a symbol gets none: the backend prepares the symbols by the same rule."""
    if not symbols:
        return normalizers.Prepend(_SPACE)
    return normalizers.Replace(Regex(rf"\A(?!(?:{'|'.join(map(re.escape, symbols))})?\z)"), _SPACE)


def _bpe(proto: Any) -> Any:
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = []
    for piece, score in scores.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(-score, vocabulary[a], vocabulary[b], (a, b)) for a, b in splits if a in scores and b in scores]
    pairs = [pair for *_, pair in sorted(merges)]
    unknown, *_ = _names(proto, _UNKNOWN)
    return models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=bool(_names(proto, _BYTE)))


def _unigram(proto: Any) -> Any:
    unknown = [piece.type for piece in proto.pieces].index(_UNKNOWN)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, unknown, byte_fallback=bool(_names(proto, _BYTE)))


def _apart(names: list[str]) -> Any:
    """Cut names of pieces that are no text behind their first letter: no score keeps one from winning against letters that are unknown."""
    rests = {name[0]: "|".join(re.escape(other[1:]) for other in names if other[0] == name[0]) for name in names}
    return pre_tokenizers.Split(Regex("|".join(f"{re.escape(first)}(?={rest})" for first, rest in rests.items())), "isolated")


def _set_text_rules(backend: Tokenizer, proto: Any) -> None:
    spec = proto.normalizer_spec
    rules: list[Any] = []
    if spec.precompiled_charsmap:
        rules.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        rules += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        rules.append(_prefix(_names(proto, _USER_DEFINED)))
    rules.append(normalizers.Replace(" ", _SPACE))
    backend.normalizer = normalizers.Sequence(rules)
    # Spaces last: where the vocabulary has none, they come out of bytes.
    steps: list[Any] = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else steps)
