"""The tables are compared with the installed DeepSpeed's source text: importing it would take seconds and a device."""

import ast
import importlib.util
import inspect
import json
from functools import cache
from pathlib import Path

import pytest

from ds_configs import ConfigError, load
from ds_configs.deepspeed_keys import BF16, CHECKPOINT, MONITORS, PIPELINE, TOP_LEVEL, ZERO
from ds_configs.deepspeed_params import OPTIMIZERS, SCHEDULERS


@cache
def tree(package: str, path: str) -> ast.Module:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return ast.parse((Path(spec.origin).parent / path).read_text(encoding="utf-8"))


def classes(package: str, path: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(tree(package, path)) if isinstance(node, ast.ClassDef)}


def pydantic_fields(path: str, name: str) -> set[str]:
    """Field names and their aliases."""
    found = set()
    for node in classes("deepspeed", path)[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
            keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
            found |= {
                str(keyword.value.value) for keyword in keywords if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant)
            }
    return found


def parameters(package: str, path: str, name: str) -> set[str]:
    init = next(node for node in classes(package, path)[name].body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments = [argument.arg for argument in init.args.args + init.args.kwonlyargs]
    return set(arguments) - {"self", "params", "optimizer"}


def constants(path: str) -> dict[str, object]:
    assigns = [node for node in tree("deepspeed", path).body if isinstance(node, ast.Assign)]
    return {
        node.targets[0].id: node.value.value
        for node in assigns
        if isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant)
    }


@pytest.mark.parametrize(
    ("table", "path", "name"),
    [
        (BF16, "runtime/precision_config.py", "DeepSpeedBF16Config"),
        (MONITORS["tensorboard"], "monitor/config.py", "TensorBoardConfig"),
        (MONITORS["csv_monitor"], "monitor/config.py", "CSVConfig"),
        (MONITORS["wandb"], "monitor/config.py", "WandbConfig"),
    ],
)
def test_a_table_holds_exactly_the_fields_of_deepspeeds_model(table, path, name):
    assert set(table) == pydantic_fields(path, name)


def test_the_zero_table_holds_every_field_and_what_was_removed():
    removed = {"mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"}
    assert set(ZERO) == pydantic_fields("runtime/zero/config.py", "DeepSpeedZeroConfig") | removed


def test_the_pipeline_table_holds_deepspeeds_defaults_and_use_reentrant():
    function = next(node for node in ast.walk(tree("deepspeed", "runtime/config.py")) if getattr(node, "name", "") == "get_pipeline_config")
    defaults = next(node.value for node in ast.walk(function) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict))
    assert set(PIPELINE) == ast.literal_eval(defaults).keys() | {"use_reentrant"}


def test_every_top_level_key_that_deepspeed_reads_is_known():
    names = constants("runtime/constants.py")
    read = {
        names[node.args[1].id]
        for node in ast.walk(tree("deepspeed", "runtime/config.py"))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "get_scalar_param"
        and getattr(node.args[0], "id", "") == "param_dict"
        if isinstance(node.args[1], ast.Name) and node.args[1].id in names
    }
    assert {"train_batch_size", "gradient_clipping", "steps_per_print"} <= read
    assert read <= set(TOP_LEVEL)


def test_every_key_deepspeed_has_removed_is_refused_with_a_reason():
    assign = next(
        node
        for node in tree("deepspeed", "runtime/config.py").body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_REMOVED_TOP_LEVEL_CONFIG_KEYS"
    )
    assert isinstance(assign.value, ast.Dict)
    for key in (ast.literal_eval(key) for key in assign.value.keys if key):
        assert "removed it" in TOP_LEVEL[key].reason


def test_checkpoint_keys_are_deepspeeds():
    names = constants("runtime/constants.py") | constants("runtime/model_checkpointing/constants.py")
    for name in ("CHECKPOINT_TAG_VALIDATION", "LOAD_UNIVERSAL_CHECKPOINT", "CHECKPOINT_PARALLEL_WRITE", "CHECKPOINT_SERIALIZATION"):
        assert names[name] in CHECKPOINT


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedulers_params_are_its_classs_arguments(name):
    assert set(SCHEDULERS[name]) == parameters("deepspeed", "runtime/lr_schedules.py", name)


def options(optimizer: str) -> dict[str, object]:
    known = OPTIMIZERS[optimizer]
    assert isinstance(known, dict)
    return known


def test_optimizers_take_the_arguments_of_their_classes():
    adam = parameters("torch", "optim/adamw.py", "AdamW") | parameters("deepspeed", "ops/adam/fused_adam.py", "FusedAdam")
    assert set(options("AdamW")) == adam | {"torch_adam", "fp32_optimizer_states", "max_grad_norm"}
    assert set(options("SGD")) - {"max_grad_norm"} <= parameters("torch", "optim/sgd.py", "SGD")


def problems(tmp_path: Path, values: dict[str, object]) -> list[str]:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [problem.partition("a.json:1: ")[2] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pipeline": {"partitions": "flops"}}, 'unknown key "pipeline.partitions". Did you mean "partition"?'),
        ({"checkpoint": {"tag_validaton": "Warn"}}, 'unknown key "checkpoint.tag_validaton". Did you mean "tag_validation"?'),
        ({"tensorboard": {"enable": True}}, 'unknown key "tensorboard.enable". Did you mean "enabled"?'),
        ({"optimizer": {"type": "AdamW", "parms": {}}}, 'unknown key "optimizer.parms". Did you mean "params"?'),
        ({"optimizer": {"type": "AdamW", "params": {"beta": 1}}}, 'unknown key "optimizer.params.beta". Did you mean "betas"?'),
        ({"optimizer": {"type": "SGD", "params": {"betas": [0, 1]}}}, 'unknown key "optimizer.params.betas".'),
        ({"optimizer": {"type": "adamw"}}, 'optimizer.type = "adamw" is not known. Did you mean "AdamW"?'),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.type is missing; it must be one of AdamW,"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": "1e-3x"}}},
            'optimizer.params.lr = "1e-3x", which is a string; it must be a number.',
        ),
        ({"optimizer": {"type": "AdamW", "params": {"lr": -1}}}, "optimizer.params.lr = -1; it must be a number of 0 or more."),
        ({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1}}}, '"gradient_clipping". Use that.'),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9}}}, "derived from the run's length"),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": 9}}}, 'unknown key "scheduler.params.warmup_max_lr"'),
        ({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1}}}, "scheduler.params.cycle_max_lr is missing; OneCycle has"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4; it must be one of 0, 1, 2, 3."),
        ({"zero_optimization": {"stage3_max_live_parameters": 4}}, "belongs to ZeRO stage 3"),
        ({"data_types": {"grad_accum_dtype": "float32"}}, 'it must be one of "fp32", "bf16", "fp16".'),
        ({"pipeline": {"use_reentrant": True}}, "loses the gradient of a stage that begins with tokens"),
        ({"fp16": {"enabled": True}}, "train in bf16 or fp32"),
        ({"optimizer": {"type": "Adagrad"}}, "the first checkpoint fails"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type = "Lamb" cannot be used: it scales a step by the norm of a whole matrix'),
        (
            {"optimizer": {"type": "Lion", "params": {"lr": 1}}},
            'optimizer.type = "Lion" cannot be used: DeepSpeed has it as a compiled CUDA',
        ),
        ({"pipeline": {"stages": 0}}, "pipeline.stages = 0; it must be an integer of 1 or more."),
        ({"pipeline": {"seed_layers": True}}, "equal dropout masks"),
        ({"train_batch_size": 0}, "train_batch_size = 0; it must be an integer of 1 or more."),
        ({"gradient_clipping": "1"}, 'gradient_clipping = "1", which is a string; it must be a number.'),
        ({"elasticity": {}}, '"elasticity" cannot be set: DeepSpeed 0.19 has removed it.'),
        ({"data_efficiency": {}}, "the data comes from our own loader"),
        ({"bfloat16": {}}, "Use that."),
        # What DeepSpeed would take and then not do.
        ({"activation_checkpointing": {"partition_activations": True}}, '"pipeline.activation_checkpoint_interval". Use that.'),
        ({"checkpoint": {"checkpoint_serialization": False}}, "nothing could be exported"),
        ({"checkpoint": {"load_universal": True}}, "recognised and read as it is"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "measured at every step"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "keeps its states on the rank's device"),
        ({"zero_optimization": {"stage": 1, "overlap_comm": True}}, "summed over the replicas once a step"),
        ({"gradient_allreduce_op": "sum"}, "averaged over micro-batches and replicas"),
        ({"communication_data_type": "fp16"}, 'it must be one of "fp32", "bf16".'),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "kept in fp32"),
        ({"pipeline": {"pipe_partitioned": True}}, "tensor-parallel"),
        ({"flops_profiler": {"enabled": True}}, "does not report it"),
        ({"data_types": {"keep_in_fp32_modules": ["norm"]}}, "in all its parts"),
        ({"aio": {"block_size": 4}}, "NVMe"),
        ({"optimizer": {"type": "AdamW", "params": {"adam_w_mode": False}}}, "never adds the decay to the gradient"),
        ({"optimizer": {"type": "Adam", "params": {"differentiable": True}}}, "differentiates through a step"),
        ({"log_level": "loud"}, "it must be one of"),
    ],
)
def test_a_mistake_in_a_deepspeed_section_is_found(tmp_path, values, said):
    (found,) = problems(tmp_path, values)
    assert said in found


def test_the_value_of_a_refused_key_that_asks_for_nothing_is_let_through(tmp_path):
    path = tmp_path / "recorded_before.json"
    path.write_text('{"pipeline": {"use_reentrant": false}, "fp16": {"enabled": false}}', encoding="utf-8")
    assert load(path).values["pipeline"] == {"use_reentrant": False}


def test_a_key_with_nothing_like_it_is_answered_with_what_is_known(tmp_path):
    (found,) = problems(tmp_path, {"bf16": {"zzzz": 1}})
    assert found.endswith("Known here: enabled.")


def test_the_reasons_end_with_what_to_do():
    for name, table in {"top": TOP_LEVEL, "zero": ZERO, "pipeline": PIPELINE, "checkpoint": CHECKPOINT}.items():
        for key, kind in table.items():
            reason = getattr(kind, "reason", ".")
            assert inspect.cleandoc(reason).endswith("."), f"{name}.{key}"
