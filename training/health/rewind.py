"""Go back to a checkpoint in the midst of a run: what is done about a spike of the loss (`spikes.py`)."""

import logging
from typing import Any

from data.batches.permutation import place
from training.checkpoints.load import choose_checkpoint, load_checkpoint
from training.config import RunConfig
from training.health.spikes import Spike, Spikes
from training.launch.process_group import Ranks
from training.run.failure import RunError

log = logging.getLogger(__name__)


def rewind(engine: Any, config: RunConfig, ranks: Ranks, spikes: Spikes, spike: Spike) -> bool:
    """Load the newest good checkpoint from before a spike, and leave out all samples read since. Collective; no save may be under way.

    Returns:
        False if there is no such checkpoint: the run goes on as it is.

    Raises:
        RunError: On all ranks, if the run has gone back too often.
        CheckpointError: On all ranks, if there are checkpoints but none of them is undamaged.
    """
    assert spikes.config is not None
    first, last = spikes.samples_of(spike.step, engine, config.batch.train_batch_size)
    what = (
        f"step {spike.step}: loss {spike.loss:.4g} is more than {spikes.config.factor:g} times the median of the "
        f"{spikes.config.window_steps} steps before, {spike.median:.4g} (training.spike), on samples {first} to {last}"
    )
    most = spikes.config.max_rewinds
    if spikes.rewinds >= most:  # More, where a later start allows fewer.
        raise RunError(f"{what}, and training.spike.max_rewinds = {most} are used up. Lower optimizer.params.lr, or look at those samples.")
    checkpoint = choose_checkpoint(config.folder, ranks, before_step=spike.step)
    if checkpoint is None:
        if ranks.is_first:
            log.warning("%s; there is no checkpoint before it, going on.", what)
        return False
    end = place(engine.global_samples, spikes.skipped)
    load_checkpoint(engine, ranks, checkpoint)
    spikes.go_back(checkpoint.manifest.get("spikes"), engine.global_samples, end)
    if ranks.is_first:
        log.warning(
            "%s; going back to %s and leaving out samples %d to %d (rewind %d of at most %d).",
            what, checkpoint.folder, spikes.skipped[-1][0], end - 1, spikes.rewinds, most,
        )  # fmt: skip
    return True
