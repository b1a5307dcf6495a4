"""A loss that jumps: when that is a spike, how often a run goes back for one, and which samples it then leaves out.

The remedy is PaLM's (Chowdhery et al. 2022, section 5.1): restart from a checkpoint some 100 steps before the spike and skip 200 to 500
batches, those seen before and during it. The same batches caused no spike from another checkpoint: what is avoided is the combination of
batches and weights. OPT (Zhang et al. 2022, section 2.5) went back as well, and lowered the learning rate, which here a person has to do.

Going back is `rewind.py`.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from data.batches.permutation import place
from ds_configs.typed import Bounded, Count


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """A step's loss above `factor` times the median of the `window_steps` before it is a spike."""

    factor: Annotated[float, Bounded(float, 1, exclusive=True)]
    window_steps: Count = 100
    max_rewinds: Count = 5


@dataclass(frozen=True)
class Spike:
    """A step, its loss, and what it was held against."""

    step: int
    loss: float
    median: float


class Spikes:
    """What a run remembers of spikes, a part of its checkpoints: the last losses, the rewinds, the samples that were left out."""

    def __init__(self, config: SpikeConfig | None, saved: Mapping[str, Any] | None = None) -> None:
        """As a new run begins, or as `facts` were saved with a checkpoint."""
        self.config = config
        self._restore(saved or {})

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.rewinds: int = saved.get("rewinds", 0)
        self.skipped: list[tuple[int, int]] = [(first, end) for first, end in saved.get("skipped_samples", [])]
        self._losses: deque[float] = deque(saved.get("losses", []), maxlen=self.config.window_steps if self.config else 0)

    def facts(self) -> dict[str, Any]:
        """For the manifest of a checkpoint. What was left out stays so, whatever a later start says of spikes."""
        if self.config is None and not self.skipped:
            return {}
        return {"spikes": {"rewinds": self.rewinds, "skipped_samples": self.skipped, "losses": list(self._losses)}}

    def find(self, records: Sequence[Mapping[str, float]]) -> Spike | None:
        """Take the losses of some steps, in order, and return the first spike. Until the window is full there is none."""
        if self.config is None:
            return None
        found = None
        for record in records:
            loss = record["train/loss"]
            if not abs(loss) < float("inf"):
                continue  # It is `training.non_finite`'s.
            if len(self._losses) == self._losses.maxlen:
                median = statistics.median(self._losses)
                if found is None and loss > self.config.factor * median:
                    found = Spike(int(record["step"]), loss, median)
            self._losses.append(loss)
        return found

    def samples_of(self, step: int, engine: Any, batch_size: int) -> tuple[int, int]:
        """The first and the last sample that a step not long ago has read."""
        end = int(engine.global_samples - (engine.global_steps - step) * batch_size)
        return place(end - batch_size, self.skipped), place(end - 1, self.skipped)

    def go_back(self, saved: Mapping[str, Any] | None, consumed: int, end: int) -> None:
        """Become what was saved with a checkpoint, and leave out what was read since.

        Args:
            saved: The `facts` in its manifest.
            consumed: The run's samples up to it.
            end: The index of the first sample that was not read yet.
        """
        rewinds = self.rewinds + 1  # Those since the checkpoint count as well.
        self._restore(saved or {})
        self.rewinds = rewinds
        self.skipped.append((place(consumed, self.skipped), end))
