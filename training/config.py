"""What one run is: our sections and DeepSpeed's, checked against each other before anything is started.

Reading and merging files is `ds_configs`; what a model or a data section may say is theirs (`model.config`, `data.config`).
This module holds the sections of training itself and every rule that spans sections. It imports neither torch nor
deepspeed: a wrong configuration must cost a second, not a job slot.
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ds_configs
from data.config import DataConfig
from ds_configs.atomic_files import object_or_nothing
from ds_configs.errors import FieldError, require
from ds_configs.typed import Count
from model.config import ModelConfig
from model.families import preset
from model.flops import Workload, layer_parameters
from model.hugging_face.pretrained import FROM, complete_from_folder
from model.partition import check_method
from training.batch_size import Batch, resolve_batch
from training.checkpoints.find_and_verify import published
from training.health.spikes import SpikeConfig

OUR_SECTIONS = ("run", "model", "data", "training", "provenance")
# Read by our own writer (run_folder/monitors.py): the engine's writer knows the loss only and waits for the device at every step.
MONITOR_SECTIONS = ("tensorboard", "csv_monitor", "wandb")
# A start, an evaluation or a save of the smallest model takes seconds without a step.
SHORTEST_WATCHDOG_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Which run this is and where it lives: `directory`/`name`."""

    name: str
    description: str = ""
    seed: int = 1024
    directory: str = "runs"

    def __post_init__(self) -> None:
        require(self, "seed", 0 <= self.seed < 2**63, "0 or more and below 2**63")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long to train, and when to log, evaluate and save. Intervals are optimizer steps."""

    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    log_interval_steps: Count = 10
    eval_interval_steps: Count = 500
    eval_batches: int | None = None
    save_interval_steps: Count = 500
    keep_checkpoints: Count = 3
    async_save: bool = True
    sample_prompt: str | None = None
    sample_tokens: int = 64
    sample_temperature: float = 0.8
    non_finite: Literal["stop", "skip"] = "stop"
    replica_check_interval_steps: int | None = 100
    spike: SpikeConfig | None = None
    watchdog_seconds: int = 1800
    stop_grace_seconds: Count = 300
    stop_after_minutes: float | None = None
    peak_tflops_per_device: float | None = None

    def __post_init__(self) -> None:
        lengths = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(lengths) != 1:
            said = " and ".join(lengths) if lengths else "none of them"
            raise FieldError("steps", f', epochs, tokens: {said} given; exactly one says how long to train, e.g. "steps": 4000.')
        require(self, lengths[0], getattr(self, lengths[0]) > 0, "more than 0")
        checks = self.replica_check_interval_steps
        require(self, "replica_check_interval_steps", checks is None or checks >= 1, "1 or more, or null for none")
        minutes = self.stop_after_minutes
        require(self, "stop_after_minutes", minutes is None or minutes > 0, "more than 0, or null for no limit")
        long_enough = f"{SHORTEST_WATCHDOG_SECONDS} or more, and longer than a start, an evaluation or a save takes"
        require(self, "watchdog_seconds", self.watchdog_seconds >= SHORTEST_WATCHDOG_SECONDS, long_enough)
        batches = self.eval_batches
        require(self, "eval_batches", batches is None or batches >= 1, "1 or more, or null for the whole validation split")
        if not 0 <= self.sample_tokens <= 64:
            raise FieldError(
                "sample_tokens", f" = {self.sample_tokens}; 0 to 64. For longer texts: .venv/bin/python -m inference.generate."
            )
        peak = self.peak_tflops_per_device
        require(self, "peak_tflops_per_device", peak is None or peak > 0, "more than 0, or null to measure it")
        temperature = self.sample_temperature
        require(self, "sample_temperature", temperature == 0 or 0.01 <= temperature <= 100, "0 (greedy) or from 0.01 to 100")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One resolved run. `deepspeed` is what `deepspeed.initialize` gets; batch sizes in it are the final ones."""

    path: Path
    values: dict[str, Any] = field(repr=False)
    run: RunSection
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    batch: Batch
    deepspeed: dict[str, Any] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Where the run writes: config, log, checkpoints, TensorBoard events, samples."""
        return Path(self.run.directory) / self.run.name

    @property
    def tokens_per_step(self) -> int:
        """Tokens one optimizer step learns from, over all replicas."""
        return self.batch.train_batch_size * self.data.seq_length

    @property
    def precision(self) -> bool | Literal["auto"]:
        """What `bf16.enabled` says: "auto" until the devices are known, and in a config.json for ever."""
        setting: bool | Literal["auto"] = self.values.get("bf16", {}).get("enabled", False)
        return setting

    @property
    def uses_bf16(self) -> bool:
        """Whether weights are bf16 or fp32 (with fp32 masters either way). Needs `with_precision` where the setting is "auto"."""
        enabled = self.deepspeed.get("bf16", {}).get("enabled", False)
        assert isinstance(enabled, bool), f'bf16.enabled = "{enabled}" was not decided yet'
        return enabled

    @property
    def optimizer_type(self) -> str:
        """DeepSpeed's name of the optimizer."""
        kind: str = self.deepspeed["optimizer"]["type"]
        return kind

    @property
    def partition(self) -> str:
        """How layers are divided into stages: `pipeline.partition`."""
        method: str = self.values.get("pipeline", {}).get("partition", "flops")
        return method

    @property
    def workload(self) -> Workload:
        """How the pipeline is run, as far as its memory and traffic depend on it."""
        bf16 = self.uses_bf16
        return Workload(
            seq_length=self.data.seq_length,
            micro_batch=self.batch.micro_batch,
            micro_batches=self.batch.accumulation,
            replicas=self.batch.replicas,
            bf16=bf16,
            muon=self.optimizer_type == "Muon",
            sends_bf16=self.deepspeed.get("communication_data_type", "bf16" if bf16 else "fp32") == "bf16",
            activation_checkpoint_interval=self.deepspeed.get("pipeline", {}).get("activation_checkpoint_interval", 0),
        )

    def last_step(self, samples_per_epoch: int | None = None) -> int | None:
        """Number of optimizer steps, or None where it needs the corpus (`epochs`) and `samples_per_epoch` is not known yet."""
        plan = self.training
        if plan.steps is not None:
            return plan.steps
        if plan.tokens is not None:
            return -(-plan.tokens // self.tokens_per_step)
        if samples_per_epoch is None or plan.epochs is None:
            return None
        return max(1, round(plan.epochs * samples_per_epoch / self.batch.train_batch_size))


def resolve(config: ds_configs.LoadedConfig, world_size: int | None = None) -> RunConfig:
    """Build and check every section, and the rules between them.

    Args:
        config: What `ds_configs.read` or `load` returned; problems it carries are reported together with those found here.
        world_size: Number of ranks that were started; None before a launch, when the batch keys alone decide.

    Raises:
        ds_configs.ConfigError: With all problems found, one line each.
    """
    values = config.values
    problems = list(config.problems)

    def attempt(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ds_configs.ConfigError as error:
            problems.extend(error.problems)
        except ValueError as error:
            problems.append(f"{config.where(getattr(error, 'key', ''))}: {error}")
        return None

    def section(name: str, cls: Any, prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: given) -> Any:
        if not isinstance(values.get(name, {}), dict):
            return None  # Reported by the reader.
        return attempt(lambda: ds_configs.build_section(cls, prepare(values.get(name, {})), name, config.where))

    run = section("run", RunSection)
    if isinstance(values.get("model"), dict) and FROM in values["model"]:
        completed = attempt(lambda: {FROM: values["model"][FROM], **preset(complete_from_folder(values["model"], _recorded_model(run)))})
        if completed is None:
            raise ds_configs.ConfigError(problems)  # Without the folder nothing can be said of the model.
        values = {**values, "model": completed}
    model = section("model", ModelConfig, preset)
    data = section("data", DataConfig)
    training = section("training", TrainingConfig)
    if config.problems:
        raise ds_configs.ConfigError(problems)  # With keys unknown or of a wrong type, rules between sections have nothing to hold on to.
    batch = attempt(lambda: resolve_batch(values, world_size))
    attempt(lambda: check_method(values.get("pipeline", {}).get("partition", "flops"), model.layer_classes if model else ()))
    for key, problem in (*precision_problems(values), *cross_problems(values, model, data, batch)):
        problems.append(f"{config.where(key)}: {key}{problem}")
    if problems:
        raise ds_configs.ConfigError(problems)
    resolved = RunConfig(path=config.path, values=values, run=run, model=model, data=data, training=training, batch=batch, deepspeed={})
    return with_deepspeed(resolved, resolved.last_step())


def _recorded_model(run: RunSection | None) -> dict[str, Any] | None:
    """The model section, completed, of a run that has saved before."""
    folder = Path(run.directory) / run.name if run else None
    if folder is None or not published(folder):
        return None
    model = object_or_nothing(folder / "config.json").get("model")
    return model if isinstance(model, dict) else None


def precision_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Only combinations that were shown to train right are let through (docs/architecture.md, "Precision").

    Yields:
        A key, and what is said of it.
    """
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage != 1:
        yield (
            "zero_optimization.stage",
            f" = {stage}; it must be 1. With a pipeline, stages 2 and 3 cannot work, "
            "and without ZeRO the gradient norm that clipping uses counts the first stage only.",
        )
    accumulate = values.get("data_types", {}).get("grad_accum_dtype")
    if accumulate != "fp32" and (accumulate or values.get("bf16", {}).get("enabled")):
        yield "data_types.grad_accum_dtype", f' = {json.dumps(accumulate)}; it must be "fp32": bf16 sums of many gradients lose the small.'


def cross_problems(
    values: Mapping[str, Any], model: ModelConfig | None, data: DataConfig | None, batch: Batch | None
) -> Iterator[tuple[str, str]]:
    """Rules between sections, as `precision_problems`. A section that is None has its own problems already."""
    if model and data and data.seq_length > model.max_seq_length:
        yield (
            "data.seq_length",
            f" = {data.seq_length} is longer than model.max_seq_length = {model.max_seq_length}. "
            "Shorten it or give the model more positions.",
        )
    # Of characters the section tells no more than how many there may be.
    vocabulary = data.tokenizer.vocab_size if data and data.tokenizer.kind != "characters" else None
    if model and vocabulary is not None and vocabulary > model.vocab_size:
        yield (
            "data.tokenizer.vocab_size",
            f" = {vocabulary} does not fit model.vocab_size = {model.vocab_size}. Make the model's at least as large.",
        )
    num_layers = len(layer_parameters(model)) if model else None
    if batch and num_layers and batch.stages > num_layers:
        yield (
            "pipeline.stages",
            f" = {batch.stages}, but the model has only {num_layers} layers to put on them. Use fewer stages or more model.num_layers.",
        )
    optimizer = values.get("optimizer")
    if not optimizer:
        yield "optimizer", " is missing; inherit parts/engine/pipeline.json or write the section."
    elif optimizer["type"] == "SGD" and not values.get("zero_allow_untested_optimizer"):
        yield "optimizer.type", ' = "SGD" is not tested with ZeRO by DeepSpeed. Set "zero_allow_untested_optimizer": true to use it.'


def with_precision(config: RunConfig, bf16: bool) -> RunConfig:
    """The run with "auto" decided; `values`, which are recorded, keep what was said."""
    return dataclasses.replace(config, deepspeed={**config.deepspeed, "bf16": {**config.deepspeed.get("bf16", {}), "enabled": bf16}})


def with_deepspeed(config: RunConfig, last_step: int | None) -> RunConfig:
    """The run with the dict for `deepspeed.initialize`: our sections out, batch sizes final, the schedule's length filled in."""
    engine = {key: copy.deepcopy(value) for key, value in config.values.items() if key not in (*OUR_SECTIONS, *MONITOR_SECTIONS)}
    engine["train_batch_size"] = config.batch.train_batch_size
    engine["train_micro_batch_size_per_gpu"] = config.batch.micro_batch
    engine["gradient_accumulation_steps"] = config.batch.accumulation
    # The engine's own step line would be a second log format; ours is run_folder/outputs.py.
    engine.setdefault("steps_per_print", 1 << 62)
    if engine.get("scheduler", {}).get("type") in ("WarmupCosineLR", "WarmupDecayLR") and last_step is not None:
        engine["scheduler"].setdefault("params", {})["total_num_steps"] = last_step
    return dataclasses.replace(config, deepspeed=engine)
