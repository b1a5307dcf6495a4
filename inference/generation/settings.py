"""In which precision to write, and how to draw the next token. Torch is not needed here, so that a mistake is told before anything slow."""

from dataclasses import dataclass, field
from functools import cached_property

from inference.generation.stopping import Stops

DTYPES = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of one generation; those with a help text are options of the command.

    The order of effect: repetition penalty, temperature, top-k, top-p.
    """

    new_tokens: int = field(default=200, metadata={"metavar": "N", "help": "tokens to add at most"})
    temperature: float = field(default=0.8, metadata={"metavar": "X", "help": "0 is greedy"})
    top_k: int = field(default=0, metadata={"metavar": "K", "help": "draw from the K likeliest tokens, 0 is all"})
    top_p: float = field(default=0.95, metadata={"metavar": "P", "help": "draw from the likeliest tokens that make up P"})
    repetition_penalty: float = field(default=1.0, metadata={"metavar": "X", "help": "1 is none"})
    """Above 1, tokens of the prompt and of the text so far become less likely."""
    seed: int = field(default=0, metadata={"metavar": "N", "help": "same seed, same text"})
    stop: tuple[str, ...] = ()
    """Texts that end the generated text; they are not part of it."""
    stop_at: tuple[str, ...] = ()
    """Of `stopping.BOUNDARIES`."""

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise ValueError(f"number of new tokens = {self.new_tokens}; it must be 1 or more.")
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            # Scores are divided by it, and must stay finite.
            raise ValueError(f"temperature = {self.temperature:g}; it must be 0 (greedy) or from 0.01 to 100, usually 0.7 to 1.")
        if self.top_k < 0:
            raise ValueError(f"top-k = {self.top_k}; it must be 0 (no limit) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p = {self.top_p:g}; it must be above 0 and at most 1 (no limit).")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(f"repetition penalty = {self.repetition_penalty:g}; it must be from 0.01 to 100, 1 is none.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}; it must be 0 or more and below 2**63.")
        _ = self.stops  # checks them

    @cached_property
    def stops(self) -> Stops:
        """Both kinds of stops together."""
        return Stops(self.stop, self.stop_at)


def seed_of(index: int, first: int) -> int:
    """The seed of text number `index`, from 0, of those that are written with one seed; 0 follows the last seed that there is."""
    return (first + index) % 2**63


def choose_dtype(wanted: str, num_processes: int = 1) -> tuple[str, str]:
    """The precision to load a model in, and why: the rest of a sentence that begins with its name.

    "auto" takes bf16 or fp32 by `model.hardware.precision`, as a run does. It never takes int8: on a CPU that is the fastest by far, but
    its activations are rounded with one scale for a whole batch, so that the text of a prompt would depend on the prompts beside it.

    Args:
        wanted: One of DTYPES, or "auto".
        num_processes: Several must agree, so on a CPU they do not measure.
    """
    if wanted != "auto":
        return wanted, "as --dtype says"
    from model.hardware.devices import find_devices
    from model.hardware.precision import choose_precision

    devices = find_devices()
    if num_processes > 1 and devices.is_cpu:
        return "fp32", "which several processes on a CPU use unless --dtype says otherwise"
    precision = choose_precision("auto", devices.kind)
    return precision.name, precision.reason
