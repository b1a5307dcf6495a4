"""What one rank checks by itself, and opens, before it joins the rendezvous (`training/launch/rendezvous.py`)."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.store.identity import Identity
from ds_configs.atomic_files import digest
from ds_configs.deepspeed_params import compiles_adam
from ds_configs.errors import shown
from training.checkpoints.find_and_verify import published
from training.config import RunConfig, with_deepspeed
from training.launch.world import World, check_placement
from training.run_folder.compatibility import check_folder, check_text
from training.run_folder.lock import hold
from training.run_folder.monitors import check_outputs
from training.run_folder.progress import finished_step, last_step_of, newest_step
from training.run_folder.provenance import software

if TYPE_CHECKING:
    from data.batches.datasets import Datasets


@dataclass(frozen=True, kw_only=True)
class ReadyRun:
    """What a rank has when nothing it can see by itself speaks against a start."""

    config: RunConfig
    datasets: "Datasets"
    last_step: int
    finished: int | None
    """The step of the newest checkpoint if that is the last one."""
    notes: list[str]
    """Of rank 0: what a start should say of the run's folder, of its first weights and of the prompt, a line each."""

    def facts(self) -> dict[str, str]:
        """What must be the same on all hosts, short enough to compare."""
        return {
            "the configuration": digest(self.config.values)[:12],
            "the token store": digest(self.datasets.manifest)[:12],
            "the software": ", ".join(software()),
            "the last step of the run's checkpoints": str(self.finished or "not reached"),
        }


def preflight(config: RunConfig, world: World, overrides: Sequence[str] = ()) -> ReadyRun:
    """Check what this rank can check by itself, and open the data.

    Raises:
        ValueError: With what is wrong.
        OSError: If a folder cannot be read or written.
    """
    check_placement(world, config.batch.stages)
    notes: list[str] = []
    if world.rank == 0:
        notes += check_folder(config)
        check_outputs(config)
    from data.batches.datasets import open_datasets

    of_data = [override for override in overrides if override.startswith(("data.", "run.name="))]
    prepared_as = shlex.join([str(config.path), *of_data])
    # One disk serves all ranks. What one of them finds wrong, all hear of in the rendezvous.
    datasets = open_datasets(config.data, config.run.seed, prepared_as, share=slice(world.rank, None, world.size))
    if world.rank == 0:
        check_text(config, Identity.from_manifest(datasets.manifest), datasets.text["tokenizer"])
    check_vocabulary(config, datasets)
    notes += check_first_weights(config)
    last_step = last_step_of(config, datasets.train.samples_per_epoch)
    assert last_step is not None
    check_builds(config, last_step)
    if world.rank == 0:
        if config.model.initialize.embeddings and _needs_folder(config):
            notes += compare_tokenizers(str(config.model.initialize.folder), str(datasets.folder / "tokenizer"))
        notes += sample_notes(config, datasets)
        hold(config.folder)  # Until this process ends; and made only now, when this rank has nothing left to refuse.
    return ReadyRun(
        config=with_deepspeed(config, last_step),
        datasets=datasets,
        last_step=last_step,
        finished=finished_step(config, last_step),
        notes=notes,
    )


def check_builds(config: RunConfig, last_step: int) -> None:
    """A rank that is to compile would wait for the lock of another build without a word: for ever, if that one was killed.

    Raises:
        ValueError: If there is a lock. No rank of this run can have made it: all come here first.
    """
    compiles = compiles_adam(config.values["optimizer"]) and newest_step(config.folder) < last_step  # A finished run has no engine.
    if compiles and (locks := build_locks("*adam")):
        raise ValueError(
            f"{locks[0]}: another start compiles DeepSpeed's optimizer, or was killed while it did. Wait for the other one; if there is "
            "none, remove this file. With optimizer.params.torch_adam = true nothing is compiled."
        )


def build_locks(operator: str = "**") -> list[Path]:
    """Locks where torch compiles operators: of builds that are going on, or were killed; every later build waits for either silently."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return sorted(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches) / "torch_extensions").glob(f"**/{operator}/lock"))


def check_vocabulary(config: RunConfig, datasets: "Datasets") -> None:
    """The model must know every id the store can hold.

    Raises:
        ValueError: If the tokenizer has more ids than the model.
    """
    if datasets.tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"{config.path}: model.vocab_size = {config.model.vocab_size}, but the tokenizer in {datasets.folder} has "
            f"{datasets.tokenizer.vocab_size} ids. Set model.vocab_size to {datasets.tokenizer.vocab_size} or more."
        )


def sample_notes(config: RunConfig, datasets: "Datasets") -> list[str]:
    """A line if passages written during training cannot begin as `training.sample_prompt` says, or be as long as they should."""
    plan, positions = config.training, config.model.max_seq_length
    if not plan.sample_prompt or not plan.sample_tokens:
        return []
    given = len(datasets.tokenizer.encode(plan.sample_prompt))
    if not given:
        return [f"training.sample_prompt = {shown(plan.sample_prompt)} has no tokens: passages begin as the held-out text does."]
    if given + plan.sample_tokens <= positions:
        return []
    kept = min(given, positions - 1)
    return [
        f"training.sample_prompt has {given} tokens and training.sample_tokens = {plan.sample_tokens}, in {positions} positions of the "
        f"model: passages have the first {kept} of the prompt and {positions - kept} new ones."
    ]


def check_first_weights(config: RunConfig) -> list[str]:
    """A new run's folder of weights must fit the model.

    Returns:
        What of the folder is not used, a line each.

    Raises:
        ValueError: Names the file or tensor that does not fit.
    """
    if not _needs_folder(config):
        return []
    from model.initialize import Weights

    try:
        return Weights(config.model, config.run.seed).notes
    except ValueError as error:
        raise ValueError(f"{config.path}: model.initialize: {error}") from error


def _needs_folder(config: RunConfig) -> bool:
    """Only a new run needs the folder that its model starts from: one that goes on has all weights in its checkpoint."""
    return config.model.initialize.folder is not None and not published(config.folder)


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
