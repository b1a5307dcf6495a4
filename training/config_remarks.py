"""What is worth saying about a configuration that is right: what a run of it lacks on this machine, and what it will not reach.

`ds_configs check` prints it, and a run logs it. Torch is not needed here.
"""

import glob
import os

from data.packages import MissingPackageError
from data.source_config import HUB
from ds_configs.deepspeed_params import compiles_adam
from ds_configs.errors import ConfigError
from model.hugging_face.config import to_hugging_face
from model.hugging_face.pretrained import check_pretrained
from training.checkpoints.find_and_verify import published
from training.config import MONITOR_SECTIONS, RunConfig
from training.run_folder.monitors import check_outputs, monitor_folder


def missing(config: RunConfig) -> list[str]:
    """What the configuration names and a new run needs but is not here.

    Raises:
        ValueError: If the folder that the model starts from, or the tokenizer, is here and does not fit.
    """
    found = []
    start = config.model.initialize.folder
    if start is not None and not published(config.folder):
        if os.path.isdir(start):
            check_pretrained(config.model)
        else:
            found.append(f"model.initialize.folder = {start}: no such folder. Fetch it before the run.")
    found += _about_tokenizer(config)
    if config.data.store is not None and not os.path.exists(f"{config.data.store}.bin"):
        found.append(f"data.store = {config.data.store}: there is no {config.data.store}.bin. The preparation needs it.")
    for source in config.data.all_sources:
        found += [f"data.path = {path}: nothing there. The preparation needs it." for path in source.paths if not _is_something(path)]
    try:
        check_outputs(config)
    except ConfigError as error:
        found.append(str(error).removeprefix(f"{config.path}: "))
    return found


def _about_tokenizer(config: RunConfig) -> list[str]:
    path = config.data.tokenizer.path
    if path is None:
        return []
    if not os.path.exists(path):
        return [f"data.tokenizer.path = {path}: no such file or folder. Fetch it before the preparation."]
    try:
        from data.tokenizers import adoption

        adoption.read(config.data.tokenizer)
    except (ImportError, MissingPackageError) as error:
        return [f"data.tokenizer.path = {path}: was not looked into: {error}"]
    except ValueError as error:
        raise ConfigError(f"{config.path}: data.tokenizer: {error}") from error
    return []


def _is_something(path: str) -> bool:
    """Whether a path is there, or a pattern matches anything. What may not be looked at is not there (pathlib would raise an error).

    The hub is not asked what it has.
    """
    return path.startswith(HUB) or os.path.exists(path) or next(glob.iglob(path, recursive=True), None) is not None


def remarks_on(config: RunConfig, last_step: int | None) -> list[str]:
    """What has no effect, before the last step (None: not known yet), of optimizer, monitors and the sum of gradients; what is compiled."""
    return _unreached(config, last_step) + _replaced(config) + _not_taken(config) + _compiled(config) + unreadable(config)


def unreadable(config: RunConfig) -> list[str]:
    """What keeps the commands of `inference` from reading a run of this model."""
    try:
        to_hugging_face(config.model, config.model.family)
    except ValueError as error:
        return [f"inference.generate, serve and evaluate will not read the run: {error}"]
    return []


def _compiled(config: RunConfig) -> list[str]:
    said = (
        "optimizer.params.torch_adam is not true: DeepSpeed compiles an Adam of its own at the first start on every host, which takes a "
        "compiler and minutes. Set it to true, unless that is meant."
    )
    return [said] if compiles_adam(config.values["optimizer"]) else []


# DeepSpeed's default of warmup_num_steps.
WARMUP_STEPS = 1000


def _unreached(config: RunConfig, last_step: int | None) -> list[str]:
    if last_step is None:
        return []
    scheduler, spike, said = config.values.get("scheduler", {}), config.training.spike, []
    params = scheduler.get("params", {})
    warmup = params.get("warmup_num_steps", WARMUP_STEPS)
    if scheduler.get("type", "").startswith("Warmup") and warmup > last_step:
        whose = "" if "warmup_num_steps" in params else ", which is DeepSpeed's default,"
        said.append(
            f"scheduler.params.warmup_num_steps = {warmup}{whose} and the run has {last_step} steps: it ends before the learning rate is "
            "at its peak. Shorten the warm-up, unless this is only a trial."
        )
    if spike and spike.window_steps >= last_step:
        said.append(
            f"training.spike.window_steps = {spike.window_steps} and the run has {last_step} steps: it ends before a loss is compared with "
            "so many. Shorten the window."
        )
    return said


# Schedules that can set the learning rate without a look at the optimizer's -> their key, and DeepSpeed's default.
_OWN_RATE = {
    "WarmupLR": ("warmup_max_lr", None),
    "WarmupDecayLR": ("warmup_max_lr", 0.001),
    "LRRangeTest": ("lr_range_test_min_lr", 0.001),
    "OneCycle": ("cycle_max_lr", None),
}


def _replaced(config: RunConfig) -> list[str]:
    scheduler, optimizer = (config.values.get(section, {}) for section in ("scheduler", "optimizer"))
    params, given = scheduler.get("params", {}), optimizer.get("params", {})
    key, default = _OWN_RATE.get(scheduler.get("type"), (None, None))
    rate = params.get(key, default)
    other = [f"optimizer.params.{name} = {given[name]}" for name in ("lr", "muon_lr", "adam_lr") if name in given and given[name] != rate]
    said = []
    if rate is not None and other:
        whose = "" if key in params else ", which is DeepSpeed's default"
        said.append(
            f"scheduler.type = {scheduler['type']} sets the learning rate itself (scheduler.params.{key} = {rate}{whose}), so "
            f"{' and '.join(other)} {'is' if len(other) == 1 else 'are'} not used. Say the same there, or use WarmupCosineLR."
        )
    needed = {"muon_lr", "adam_lr"} if optimizer["type"] == "Muon" and "lr" not in given else {"lr"}
    if rate is None and (unset := sorted(needed - given.keys())):
        names = " and ".join(f"optimizer.params.{name}" for name in unset)
        said.append(f"{names} not set: the learning rate is DeepSpeed's default. Say which one is meant.")
    moves, adam = scheduler.get("type") == "OneCycle" and params.get("cycle_momentum", True), optimizer["type"] in ("AdamW", "Adam")
    if moves and adam and "betas" in given:
        said.append(
            "scheduler.type = OneCycle moves the first of Adam's betas from cycle_max_mom (0.9) to cycle_min_mom (0.8) and back and "
            f"sets the second to 0.99, so optimizer.params.betas = {given['betas']} is not used. "
            "scheduler.params.cycle_momentum = false keeps it."
        )
    elif moves and not adam and (momenta := [key for key in params if "mom" in key]):
        said.append(f"scheduler.params.{momenta[0]} is not used: OneCycle moves the betas of AdamW and Adam only. Remove it.")
    return said


def _not_taken(config: RunConfig) -> list[str]:
    """As DeepSpeed names folders below `output_path` only, its default being `.`; here it is the run's folder."""
    said = []
    for monitor in MONITOR_SECTIONS:
        section = config.values.get(monitor, {})
        if not monitor_folder(config, monitor):
            if section and "enabled" not in section:
                said.append(f"{monitor} is off, whatever else it says, as {monitor}.enabled is not set. Set it true or false.")
        elif section.get("job_name") and not section.get("output_path"):
            where = f"{monitor}.job_name = {section['job_name']} is not used without {monitor}.output_path"
            said.append(f"{where}: the curves are in the run's folder.")
    factor = config.values.get("gradient_predivide_factor", 1)
    if config.values.get("prescale_gradients") and factor != 1:
        said.append(f"gradient_predivide_factor = {factor} is not used with prescale_gradients = true. Remove one of them.")
    return said
