"""What the tests of tokenizers share: the kinds that are trained, texts that are hard to encode, and taking one over."""

from pathlib import Path
from typing import Any

from data.config import TokenizerConfig
from data.tokenizers import adoption, tokenizer_folder

KINDS: dict[str, int | None] = {
    "byte_bpe": 400,
    "characters": None,
    "sentencepiece_bpe": 480,
    "sentencepiece_unigram": 400,
}
PROBES = [
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "  two  spaces and 龘, which is not in the text; 𠀀 é \n\n\t end ",
    "春眠不觉晓" * 50,
    "A B",
]


def adopt(path: Path, folder: Path, **names: Any) -> tokenizer_folder.Tokenizer:
    """Take over a tokenizer from a file or folder, and load the result."""
    adoption.adopt(TokenizerConfig(kind="existing", path=str(path), **names), folder)
    return tokenizer_folder.load(folder)
