"""Which consecutive layers each pipeline stage gets: the split whose slowest stage is fastest.

The work of a layer comes from the configuration (`flops.py`); DeepSpeed's own methods and timing are in `pipeline.py`.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate

from ds_configs.errors import FieldError

KEY = "pipeline.partition"
METHODS = ("flops", "measured", "uniform", "parameters")


def check_method(method: str, classes: Sequence[str] = ()) -> None:
    """Refuse a `pipeline.partition` that does not exist, or one by a type that no layer has.

    Args:
        method: What it says.
        classes: Those of the layers (`ModelConfig.layer_classes`); none if the model is not known.

    Raises:
        FieldError: Names the methods, or the classes, there are.
    """
    if method in METHODS:
        return
    if not method.startswith("type:"):
        raise FieldError(KEY, f' = "{method}" is unknown. Use {", ".join(METHODS)}, or type:<regular expression of layer classes>.')
    try:
        pattern = re.compile(method.removeprefix("type:"), re.IGNORECASE)
    except re.error as error:
        raise FieldError(KEY, f' = "{method}" is no regular expression after "type:": {error}.') from error
    if classes and not any(map(pattern.search, classes)):
        raise FieldError(KEY, f' = "{method}" matches no layer. The classes are {", ".join(dict.fromkeys(classes))}.')


def balance(work: Sequence[float], stages: int) -> list[int]:
    """First layer of each stage, then the number of layers: the contiguous split with the least largest sum.

    Exact, by dynamic programming over (stages, layers). Every stage gets at least one layer. Of the splits with the same slowest stage
    the most even one is taken (least sum of squared stage sums).

    Raises:
        ValueError: If there are more stages than layers.
    """
    if not 1 <= stages <= len(work):
        raise ValueError(f"{len(work)} layers cannot fill {stages} pipeline stages. Use 1 to {len(work)} stages.")
    before = list(accumulate(work, initial=0.0))
    slowest, _ = _best_cuts(before, stages, lambda total, stage: max(total, stage))
    _, cuts = _best_cuts(before, stages, lambda total, stage: total + stage**2 if stage <= slowest else math.inf)
    return cuts


def _best_cuts(before: Sequence[float], stages: int, add: Callable[[float, float], float]) -> tuple[float, list[int]]:
    """The least cost of cutting layers into stages, and the cuts. `add` takes the cost so far and the work of one more stage."""
    count = len(before) - 1
    # best[j]: the cheapest way to place the first j layers on the stages so far; infinite where that cannot be done.
    best: list[tuple[float, list[int]]] = [(0.0, [0]), *[(math.inf, [0])] * count]
    for _ in range(stages):
        best = [(math.inf, [0])] + [
            min((add(best[i][0], before[j] - before[i]), [*best[i][1], j]) for i in range(j)) for j in range(1, count + 1)
        ]
    return best[count]
