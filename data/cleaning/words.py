"""What a word is, told once for the rules and for the search for duplicates.

In alphabets, from Latin and Greek to Mongolian, it is a run of letters, digits, underscores and their marks; beyond them, as in Chinese,
every letter stands alone.
"""

import re
import sys
from functools import lru_cache

import numpy as np

WORD = re.compile("[0-9A-Za-z_\u00c0-\u1fff]+")

NO_LETTER, IN_WORD, ALONE = 0, 1, 2


def codes(text: str) -> np.ndarray:
    """(characters,) uint32 code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@lru_cache(maxsize=1)
def kinds() -> np.ndarray:
    """(code points,) uint8, 1.1 MB: NO_LETTER, IN_WORD or ALONE."""
    found = np.array([ALONE if chr(code).isalnum() else NO_LETTER for code in range(sys.maxunicode + 1)], dtype=np.uint8)
    for word in WORD.finditer("".join(map(chr, range(0x2000)))):
        found[word.start() : word.end()] = IN_WORD
    return found
