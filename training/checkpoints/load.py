"""Resume: choose the newest good checkpoint, together with all ranks, and load it into the engine.

A torn or damaged checkpoint costs an interval, not the run: the one before it is taken.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from training.checkpoints.find_and_verify import Checkpoint, first_good, published, step_of, verify
from training.checkpoints.snapshot import describe, load_random_state
from training.launch.process_group import Ranks, gather, quiet
from training.optimizer.parameter_groups import apply_configured
from training.run.engine import SAVED_PREFIX

log = logging.getLogger(__name__)


def choose_checkpoint(run: Path, ranks: Ranks, before_step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were saved, the same on every rank; None if there is none yet.

    Every rank verifies its share of the files. With `before_step`, checkpoints of that step and later ones do not count.

    Raises:
        CheckpointError: On all ranks, if there are complete checkpoints but none of them is undamaged.
    """

    def verify_together(folder: Path) -> tuple[Checkpoint | None, list[str]]:
        checkpoint, problems = verify(folder, slice(ranks.world.rank, None, ranks.world.size))
        return checkpoint, list(dict.fromkeys(problem for each in gather(problems) for problem in each))

    saved = published(run) if ranks.is_first else []
    folders = gather([folder for folder in saved if before_step is None or (step_of(folder.name) or 0) < before_step])[0]
    return first_good(run, map(verify_together, folders), log.warning if ranks.is_first else lambda line: None) if folders else None


def load_checkpoint(engine: Any, ranks: Ranks, folder: Path, *, universal: bool) -> list[str]:
    """Restore the engine, and this rank's random state if the same topology saved it.

    Returns:
        What the configuration says otherwise than the checkpoint did, and is now so (`apply_configured`).

    Raises:
        RuntimeError: On the rank that could not load. It must leave its process: the others may be inside a collective.
    """
    try:
        # Runs in fp32 were once saved under another name.
        engine.checkpoint_prefix = SAVED_PREFIX if any(folder.glob(f"{SAVED_PREFIX}zero_*")) else ""
        with quiet():
            loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        # Weights are the masters' rounding to the precision of now, which need not be that of the files.
        engine.optimizer.update_lp_params()
        if loaded is not None and not universal:
            load_random_state(folder, ranks.world.rank)
    except Exception as error:  # DeepSpeed lets through whatever its parts raise.
        raise RuntimeError(f"{folder} could not be loaded: {describe(error)}") from error
    finally:
        engine.checkpoint_prefix = SAVED_PREFIX
    if loaded is None:
        raise RuntimeError(f"{folder} could not be loaded: DeepSpeed found nothing in it")
    return apply_configured(engine)
