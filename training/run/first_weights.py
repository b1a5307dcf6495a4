"""Where a run's first weights come from, as far as training has to see to it. Copying and drawing them is `model.initialize`.

Only a new run needs the folder that its model starts from: one that goes on has all weights in its checkpoint.
"""

from __future__ import annotations

import dataclasses

from model.config import InitializeConfig
from training.checkpoints.find_and_verify import published
from training.config import RunConfig


def check_first_weights(config: RunConfig) -> list[str]:
    """A new run's folder of weights must fit the model.

    Returns:
        What of the folder is not used, a line each.

    Raises:
        ValueError: Names the file or tensor that does not fit.
    """
    if not _needs_folder(config):
        return []
    from model.gpt import first_weights

    try:
        return first_weights(config.model, config.run.seed).notes
    except ValueError as error:
        raise ValueError(f"{config.path}: model.initialize: {error}") from error


def _needs_folder(config: RunConfig) -> bool:
    return config.model.initialize.folder is not None and not published(config.folder)


def check_tokenizer(config: RunConfig, ours: str) -> list[str]:
    """As `compare_tokenizers`, for a new run that takes over a folder's embedding; `ours` is the store's."""
    start = config.model.initialize
    return compare_tokenizers(str(start.folder), ours) if start.embeddings and _needs_folder(config) else []


def compare_tokenizers(folder: str, ours: str) -> list[str]:
    """A line if a folder's embedding was trained for other ids than the store's tokenizer gives, or if that cannot be told."""
    from data.tokenizers.adoption import vocabulary

    try:
        theirs = vocabulary(folder)
    except ValueError as error:
        return [f"{folder}: its tokenizer could not be compared with the store's: {error}"]
    mine = vocabulary(ours)
    tokens = {index: token for token, index in theirs.items()}
    others = [index for token, index in mine.items() if tokens.get(index) != token]
    if not others:
        return []
    return [
        f"{folder}: its tokenizer is not the store's. {len(others):,} of {len(mine):,} ids stand for something else there, and the copied "
        f'embedding was trained for that. Use the folder\'s (data.tokenizer = {{"kind": "existing", "path": "{folder}"}}), '
        "or draw a new embedding (model.initialize.embeddings = false)."
    ]


def without_folder(config: RunConfig) -> RunConfig:
    """The run with weights that are drawn: all of them are then loaded from a checkpoint, and the folder may be gone."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, initialize=InitializeConfig()))
