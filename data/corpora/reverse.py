"""The `reverse` task: a random string, a separator, the string backwards. A model has learnt it or it has not.

Every sample is a function of its number, so any part can be made by any worker.
"""

from collections.abc import Iterator

from data.batches.permutation import mix
from data.documents import Document
from data.source_config import ReverseConfig


def samples(config: ReverseConfig, start: int, end: int) -> Iterator[Document]:
    """Yield samples `start` to `end`: abcd>dcba. Short strings repeat; exact deduplication and splitting go by the text."""
    num_lengths = config.max_length - config.min_length + 1
    for number in range(start, end):
        length = config.min_length + mix(number, 0) % num_lengths
        text = "".join(config.alphabet[mix(number, position + 1) % len(config.alphabet)] for position in range(length))
        yield Document(f"{text}{config.separator}{text[::-1]}", f"reverse, sample {number}")
