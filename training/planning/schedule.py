"""DeepSpeed's pipeline schedule, played with the seconds that each stage needs, and drawn.

The instructions come from DeepSpeed's own `TrainSchedule`, so what is played is what runs: 1F1B with a send and a receive that meet, as
they do with gloo and with NCCL's and oneCCL's larger messages. Links are taken to carry one message of a pair at a time.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from pathlib import Path

# A longer step is periodic: it is played this many micro-batches beyond the stages, and continued from there.
PLAYED = 16


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """What one micro-batch, and the end of a step, take a stage. All in seconds."""

    forward: float
    backward: float
    reduce: float = 0.0
    """Once a step, as soon as the stage's own passes are done: sums of gradients over replicas, and over the two ends of a tied matrix."""
    step: float = 0.0
    """Once a step, when all stages have reduced, because the norm is taken over all of them: optimizer, exchange of weights."""


@dataclass(frozen=True)
class Span:
    """One busy moment of a stage."""

    stage: int
    kind: str
    """forward, backward, reduce or step."""
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True)
class Played:
    """One optimizer step. `spans` holds the micro-batches that were played one by one; `busy` counts all of them."""

    seconds: float
    busy: tuple[float, ...]
    """By stage: seconds of forward and backward passes."""
    spans: tuple[Span, ...] = field(repr=False)

    @property
    def bubble(self) -> tuple[float, ...]:
        """By stage: the share of the step in which it computes nothing for a micro-batch."""
        return tuple(1 - busy / self.seconds for busy in self.busy)


def play(stages: Sequence[StageSeconds], micro_batches: int, transfer_seconds: float = 0.0) -> Played:
    """One optimizer step of a pipeline.

    Args:
        stages: Their seconds, first to last.
        micro_batches: Of a step and pipeline (gradient accumulation).
        transfer_seconds: From one stage to the next, of the activations or the gradients of one micro-batch.
    """
    most = len(stages) + PLAYED
    continued = micro_batches > most + len(stages)
    seconds, spans = _play(stages, most if continued else micro_batches, transfer_seconds)
    if continued:
        longer, _ = _play(stages, most + len(stages), transfer_seconds)
        seconds += (micro_batches - most) * ((longer - seconds) / len(stages))
    return Played(seconds, tuple(micro_batches * (one.forward + one.backward) for one in stages), spans)


_STEP = ("step", 0)
# + is an activation on its way to the next stage, - a gradient on its way back: what meets it, and how many stages further on.
_ANSWERS = {"send+": ("recv+", 1), "recv+": ("send+", -1), "send-": ("recv-", -1), "recv-": ("send-", 1)}


def _play(stages: Sequence[StageSeconds], micro_batches: int, transfer_seconds: float) -> tuple[float, tuple[Span, ...]]:
    """Seconds of the whole step, and its spans."""
    queues = [_instructions(stage, len(stages), micro_batches) for stage in range(len(stages))]
    clocks = [0.0] * len(stages)
    spans: list[Span] = []
    waiting = list(range(len(stages)))
    while waiting:
        stage = waiting.pop()
        while (instruction := queues[stage][0]) != _STEP:  # All stages together, below.
            kind, number = instruction
            if kind in _ANSWERS:
                answer, distance = _ANSWERS[kind]
                other = stage + distance
                if queues[other][0] != (answer, number):
                    break  # The other stage comes back to this one.
                clocks[stage] = clocks[other] = max(clocks[stage], clocks[other]) + transfer_seconds
                queues[other].popleft()
                waiting.append(other)
            else:
                start, clocks[stage] = clocks[stage], clocks[stage] + getattr(stages[stage], kind)
                spans.append(Span(stage, kind, number, start, clocks[stage]))
            queues[stage].popleft()
    assert all(queue[0] == _STEP for queue in queues), "DeepSpeed's schedule has no send without its receive"
    together = max(clocks)
    spans += [Span(stage, "step", 0, together, together + one.step) for stage, one in enumerate(stages)]
    seconds = together + max(one.step for one in stages)
    return seconds, tuple(sorted(spans, key=lambda span: (span.start, span.stage)))


def _instructions(stage: int, count: int, micro_batches: int) -> deque[tuple[str, int]]:
    """(kind, micro-batch) in the order in which DeepSpeed runs them on a stage. It numbers buffers; their users are counted here."""
    from deepspeed.runtime.pipe import schedule  # Takes seconds: a mistake is said before.

    kinds = {
        schedule.SendActivation: "send+",
        schedule.RecvActivation: "recv+",
        schedule.SendGrad: "send-",
        schedule.RecvGrad: "recv-",
        schedule.ForwardPass: "forward",
        schedule.BackwardPass: "backward",
        schedule.ReduceGrads: "reduce",
        schedule.OptimizerStep: "step",
    }
    seen: Counter[str] = Counter()
    found: deque[tuple[str, int]] = deque()
    for command in chain.from_iterable(schedule.TrainSchedule(micro_batches, count, stage).steps()):
        if kind := kinds.get(type(command)):
            found.append((kind, seen[kind]))
            seen[kind] += 1
    return found


def one_after_the_other(stages: Sequence[StageSeconds], micro_batches: int, transfer_seconds: float = 0.0) -> float:
    """Seconds of a step with one stage busy at a time: layers on several devices without a pipeline (naive model parallelism)."""
    each = sum(one.forward + one.backward for one in stages) + 2 * (len(stages) - 1) * transfer_seconds
    return micro_batches * each + max(one.reduce for one in stages) + max(one.step for one in stages)


WIDTH, ROW, LEFT, TOP = 1000, 26, 64, 44
COLOURS = {"forward": "#5b8def", "backward": "#f2a65a", "reduce": "#a58fc4", "step": "#7c9a7e"}
NUMBERED_FROM = 14
"""Pixels from which on a box has its micro-batch's number in it."""


def write_timeline(path: Path, played: Played, title: str) -> None:
    """Draw as an SVG picture, one row a stage, the passes that were played one by one; a longer step repeats its middle."""
    shown = max(span.end for span in played.spans)
    scale = (WIDTH - LEFT - 10) / shown
    stroke = 'stroke="#fff" stroke-width="0.5"'
    stages = len(played.busy)
    height = TOP + stages * ROW + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-size="14" fill="#222">{escape(title, quote=False)}</text>',
    ]
    for index, (kind, colour) in enumerate(COLOURS.items()):
        left = LEFT + 130 * index
        parts.append(
            f'<rect x="{left}" y="26" width="12" height="10" fill="{colour}"/><text x="{left + 17}" y="36" fill="#222">{kind}</text>'
        )
    for stage in range(stages):
        y = TOP + stage * ROW
        parts.append(f'<text x="4" y="{y + 17}" fill="#222">stage {stage}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{WIDTH - LEFT - 10}" height="{ROW - 4}" fill="#eeeeee"/>')
    for span in played.spans:
        x, y, width = LEFT + span.start * scale, TOP + span.stage * ROW + 2, (span.end - span.start) * scale
        if width < 0.05:
            continue
        parts.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 4}" fill="{COLOURS[span.kind]}" {stroke}/>')
        if width >= NUMBERED_FROM and span.kind in ("forward", "backward"):
            parts.append(f'<text x="{x + width / 2:.2f}" y="{y + 15}" text-anchor="middle" font-size="10">{span.micro_batch + 1}</text>')
    parts.append(f'<text x="{LEFT}" y="{height - 10}" fill="#222">0</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{height - 10}" text-anchor="end" fill="#222">{shown:.3g} s</text></svg>')
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
