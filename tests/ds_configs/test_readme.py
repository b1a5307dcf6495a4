"""ds_configs/README.md lists every key of ours with its default, and its examples work."""

import dataclasses
import json
import re
import shlex
import shutil
import typing
from pathlib import Path

import pytest

from data.config import DataConfig
from ds_configs import load
from ds_configs.deepspeed_keys import PIPELINE
from model.config import ModelConfig
from tests import ROOT
from training.config import RunSection, TrainingConfig, resolve

TEXT = (ROOT / "ds_configs/README.md").read_text(encoding="utf-8")
ROWS = {key: default for key, default in re.findall(r"^\| `([\w.]+)` \|.*\| (.+) \|$", TEXT, flags=re.MULTILINE)}
SECTIONS = {"run": RunSection, "model": ModelConfig, "data": DataConfig, "training": TrainingConfig}


def keys(cls: type, name: str) -> dict[str, dataclasses.Field[typing.Any]]:
    """Every dotted key of a section, nested sections included."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        found[f"{name}.{field.name}"] = field
        for arm in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(arm, type) and dataclasses.is_dataclass(arm):
                found |= keys(arm, f"{name}.{field.name}")
    return found


FIELDS = {key: field for name, cls in SECTIONS.items() for key, field in keys(cls, name).items()}


def test_the_readme_lists_every_key_of_ours_and_no_other():
    # `from` is replaced by what its folder says before the section becomes a ModelConfig.
    assert set(FIELDS) | {"model.from"} == {key for key in ROWS if key.split(".")[0] in SECTIONS}


@pytest.mark.parametrize("key", FIELDS)
def test_the_readme_states_the_true_default(key):
    field, said = FIELDS[key], ROWS[key]
    if field.default_factory is not dataclasses.MISSING:
        return  # a section of its own, whose keys are listed
    if key == "run.name":
        assert said == "the file's name"
    elif field.default is dataclasses.MISSING:
        assert said.startswith("required")
    elif field.default is None:
        assert said.startswith("none")
    else:
        assert said == f"`{json.dumps(field.default)}`"


def test_the_readme_lists_the_pipeline_keys_that_matter_here():
    listed = {key.removeprefix("pipeline.") for key in ROWS if key.startswith("pipeline.")}
    assert listed == {"stages", "partition", "activation_checkpoint_interval"}
    assert listed <= set(PIPELINE)


def test_the_readmes_table_of_runs_names_the_runs_that_are_there():
    named = set(re.findall(r"`(\w+)`", TEXT.split("| run | what it is |")[1].split("\n\n")[0]))
    assert named == {path.stem for path in (ROOT / "ds_configs").glob("*.json")}


def test_the_readmes_examples_are_good_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "ds_configs", "ds_configs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    run, ablation = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)
    Path("ds_configs/mine.json").write_text(run, encoding="utf-8")
    Path("ds_configs/ablations/mine_rotary.json").write_text(ablation, encoding="utf-8")

    assert resolve(load("ds_configs/mine.json")).last_step() == 200
    assert resolve(load("ds_configs/ablations/mine_rotary.json")).model.position == "rotary"


def test_the_readmes_commands_override_what_they_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [
        shlex.split(line, comments=True) for line in TEXT.replace("\\\n", " ").splitlines() if "run_pretrain.sh" in line and "=" in line
    ]
    assert len(commands) == 4
    for command in commands:
        config, overrides = (
            "ds_configs/hongloumeng_500m.json",
            command[command.index(next(w for w in command if "run_pretrain" in w)) + 1 :],
        )
        if overrides[0].endswith(".json"):
            config, *overrides = overrides
        resolve(load(config, overrides))
