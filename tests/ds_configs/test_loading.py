"""Configuration files: strict JSON, inheritance, overrides, and mistakes said with file and line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds_configs import ConfigError, LoadedConfig, load
from ds_configs.reader import Origin
from tests import ROOT


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, content: object) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return name


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def only_problem(path: str, *overrides: str) -> str:
    found = problems(path, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_importing_the_package_takes_no_framework():
    code = "import sys; import ds_configs; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()

    assert not {"torch", "deepspeed", "numpy", "pydantic", "transformers"} & set(modules)


def test_a_file_with_a_syntax_error_is_named_with_line_and_column():
    assert only_problem(write("a.json", '{\n  "run": {"seed": 1},\n}')).startswith("a.json:3:1: not valid JSON:")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"run": {"seed": 1},}', "comma"),
        ('{"run": {"seed": 1} // note\n}', "no comments"),
        ("{'run': {}}", "double quotes"),
    ],
)
def test_common_syntax_errors_come_with_a_hint(text, hint):
    assert hint in only_problem(write("a.json", text))


def test_a_key_set_twice_is_rejected_with_both_lines():
    text = '{\n "run": {"seed": 1},\n "gradient_clipping": 1.0,\n "run": {"seed": 2}\n}'
    assert only_problem(write("a.json", text)) == 'a.json:4: "run" is set twice (first on line 2). Remove one of them.'


def test_what_is_in_the_lists_of_a_key_set_twice_is_not_reported_as_well():
    text = '{"data": {"sources": [{"path": "x"}]},\n "data": {"sources": [{"path": "y"}]}}'
    assert only_problem(write("a.json", text)) == 'a.json:2: "data" is set twice (first on line 1). Remove one of them.'


def test_a_nested_key_set_twice_is_rejected_but_equal_keys_of_different_objects_are_not():
    assert '"run.seed" is set twice' in only_problem(write("a.json", '{"run": {"seed": 1, "seed": 2}}'))
    load(write("b.json", '{"run": {"seed": 1}, "data": {"seed": 2, "clean": [{"rule": "x"}, {"rule": "y"}, [{"rule": "z,:{"}]]}}'))


@pytest.mark.parametrize("text", ['{"gradient_clipping": NaN}', '{"gradient_clipping": -Infinity}', '{"gradient_clipping": 1e999}'])
def test_a_number_that_is_not_finite_is_rejected(text):
    assert "finite" in only_problem(write("a.json", text))


def test_a_file_that_is_not_utf8_or_not_an_object_is_rejected():
    Path("gbk.json").write_bytes('{"run": {"description": "红楼梦"}}'.encode("gb18030"))
    assert "is not UTF-8" in only_problem("gbk.json")
    assert "a configuration is an object" in only_problem(write("list.json", "[1]"))


def test_a_number_too_long_or_an_object_too_deep_is_rejected():
    assert "not readable" in only_problem(write("a.json", '{"train_batch_size": ' + "1" * 5000 + "}"))
    assert "nested too deeply" in only_problem(write("a.json", '{"data": ' + "[" * 100_000))
    deep = '{"data": ' * 500 + "1" + "}" * 500
    assert only_problem(write("a.json", deep)) == "a.json:1: nested too deeply to be a configuration."
    assert only_problem(write("b.json", {}), f"data={deep}") == "command line: nested too deeply to be a configuration."


def test_a_byte_order_mark_is_accepted():
    Path("bom.json").write_bytes(b'\xef\xbb\xbf{"run": {"description": "\xe7\xba\xa2"}}')
    assert load("bom.json").values["run"]["description"] == "红"


def test_a_missing_file_names_the_file_that_was_probably_meant():
    write("configs/quickstart.json", {})
    assert only_problem("configs/quikstart.json") == "configs/quikstart.json: no such file. Did you mean configs/quickstart.json?"
    assert "holds: quickstart.json" in only_problem("configs/zzz.json")
    assert "no folder nowhere" in only_problem("nowhere/a.json")
    write("runs/a/config.json", {})
    assert "Did you mean runs/a/config.json?" in only_problem("runs/a")


def test_a_child_wins_over_its_parents_key_by_key():
    write("parts/a.json", {"optimizer": {"type": "AdamW", "params": {"lr": 0.1, "betas": [0.9, 0.95]}}, "gradient_clipping": 1.0})
    write("parent.json", {"inherits": ["parts/a.json"], "data": {"path": "x"}, "run": {"seed": 7}})
    config = load(write("child.json", {"inherits": ["parent.json"], "optimizer": {"params": {"betas": [0.9, 0.99]}}}))

    assert config.values["optimizer"] == {"type": "AdamW", "params": {"lr": 0.1, "betas": [0.9, 0.99]}}
    assert config.values["run"] == {"seed": 7, "name": "child"}
    assert "inherits" not in config.values
    assert config.origins["optimizer.params.betas"].file == "child.json"
    assert config.origins["optimizer.params.lr"].file == "parts/a.json"
    assert config.origins["run.seed"].file == "parent.json"


def test_null_removes_a_key_that_a_parent_sets():
    write("parent.json", {"train_batch_size": 8, "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}}})
    config = load(write("child.json", {"inherits": ["parent.json"], "scheduler": None, "train_batch_size": None}))

    assert set(config.values) == {"run"}
    assert not [key for key in config.origins if key.startswith("scheduler")]


def test_a_null_that_removes_nothing_is_reported_because_it_is_probably_misspelt():
    write("parent.json", {"train_batch_size": 8})
    found = only_problem(write("child.json", {"inherits": ["parent.json"], "train_batch_sise": None}))
    assert 'null removes "train_batch_sise", but there is none to remove. Did you mean "train_batch_size"?' in found


def test_parents_that_disagree_must_be_settled_by_the_child_in_either_order():
    write("a.json", {"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}})
    write("b.json", {"optimizer": {"type": "AdamW", "params": {"lr": 0.2}}})
    for order in (["a.json", "b.json"], ["b.json", "a.json"]):
        found = only_problem(write("child.json", {"inherits": order}))
        assert 'child.json: its parents disagree on "optimizer.params.lr"' in found
        assert "a.json:" in found
        assert "b.json:" in found

        settled = load(write("child.json", {"inherits": order, "optimizer": {"params": {"lr": 0.3}}}))
        assert settled.values["optimizer"] == {"type": "AdamW", "params": {"lr": 0.3}}
        removed = load(write("child.json", {"inherits": order, "optimizer": None}))
        assert "optimizer" not in removed.values


def test_parents_that_agree_may_overlap_and_a_diamond_is_fine():
    write("base.json", {"gradient_clipping": 1.0, "bf16": {"enabled": True}})
    write("a.json", {"inherits": ["base.json"], "train_batch_size": 8})
    write("b.json", {"inherits": ["base.json"], "train_micro_batch_size_per_gpu": 1})
    values = load(write("child.json", {"inherits": ["a.json", "b.json"]})).values

    assert values["gradient_clipping"] == 1.0
    assert (values["train_batch_size"], values["train_micro_batch_size_per_gpu"]) == (8, 1)


def test_true_and_one_are_a_disagreement():
    write("a.json", {"data": {"x": True}})
    write("b.json", {"data": {"x": 1}})
    assert "disagree" in only_problem(write("child.json", {"inherits": ["a.json", "b.json"]}))


def test_a_cycle_is_named():
    write("a.json", {"inherits": ["sub/b.json"]})
    write("sub/b.json", {"inherits": ["../a.json"]})
    assert only_problem("a.json") == "sub/b.json: inherits itself: a.json -> sub/b.json -> a.json. Break the cycle."


def test_a_missing_parent_names_the_child_and_a_near_file():
    write("parts/engine.json", {})
    assert only_problem(write("a.json", {"inherits": ["parts/engin.json"]})) == (
        "a.json: inherits parts/engin.json: no such file. Did you mean parts/engine.json?"
    )


def test_inherits_must_be_a_list_of_files():
    for said in ("b.json", ["b\0.json"], ["\udcff.json"]):
        assert "inherits must be a list" in only_problem(write("a.json", json.dumps({"inherits": said})))


def test_a_part_cannot_be_run():
    for name in ("parts/a.json", "parts/engine/a.json"):
        assert "is a part" in only_problem(write(name, {"gradient_clipping": 1.0}))


def test_the_run_is_named_after_its_file_and_never_after_a_parent():
    write("parent.json", {"run": {"name": "mine", "description": "d"}})
    assert load("parent.json").values["run"]["name"] == "mine"
    assert load(write("sub/child.json", {"inherits": ["../parent.json"]})).values["run"] == {"name": "child", "description": "d"}
    assert load("sub/child.json", ["run.name=other"]).values["run"]["name"] == "other"


def test_a_run_name_must_be_able_to_name_a_folder():
    for name in ("../x", "a/b", ".hidden", "", "-rf"):
        assert "it names a folder" in only_problem(write("a.json", {"run": {"name": name}}))
    assert load(write("红楼梦.json", {})).values["run"]["name"] == "红楼梦"


def test_a_resolved_configuration_loads_again_and_its_provenance_is_ignored():
    resolved = {**load(write("a.json", {"gradient_clipping": 1.0})).values, "provenance": {"commit": "0" * 40, "nested": {"x": None}}}
    again = load(write("runs/a/config.json", resolved))
    assert again.values == {"gradient_clipping": 1.0, "run": {"name": "a"}}


def test_all_problems_are_reported_at_once_and_each_with_its_own_file_and_line():
    write("parent.json", '{\n "gradient_cliping": 1.0,\n "bf16": {"enabled": 1}\n}')
    found = problems(write("a.json", '{\n "inherits": ["parent.json"],\n "training": 3\n}'), "train_batch_size=true")

    assert found == [
        'parent.json:2: unknown key "gradient_cliping". Did you mean "gradient_clipping"?',
        'parent.json:3: bf16.enabled = 1; it must be true or false or "auto".',
        "a.json:3: training = 3; it must be an object.",
        "command line: train_batch_size = true, which is a truth value; it must be an integer.",
    ]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.params.lr=3e-4", 3e-4),
        ("optimizer.params.lr=1", 1),
        ("run.description=a b = c", "a b = c"),
        ('run.description="3"', "3"),
        ("run.description=", ""),
        ("data.clean=[1, {}]", [1, {}]),
        ("training.sample_prompt=却说*$(x)'", "却说*$(x)'"),
        ("training.flag=true", True),
    ],
)
def test_an_override_is_json_or_else_a_string(override, value):
    write("a.json", {"optimizer": {"type": "AdamW"}})
    config = load("a.json", [override, "run.name=b"])
    found = config.values
    for key in override.partition("=")[0].split("."):
        found = found[key]

    assert found == value
    assert type(found) is type(value)
    assert config.origins[override.partition("=")[0]].file == "command line"


def test_an_override_of_null_removes_and_one_that_removes_nothing_of_ours_is_reported():
    write("a.json", {"train_batch_size": 8, "training": {"steps": 3}})
    assert "train_batch_size" not in load("a.json", ["train_batch_size=null"]).values
    load("a.json", ["gradient_accumulation_steps=null"])  # a key that exists, and is not set
    assert 'Did you mean "steps"?' in only_problem("a.json", "training.step=null")
    assert 'Did you mean "train_batch_size"?' in only_problem("a.json", "train_batch_sizes=null")


def test_an_override_that_is_none_is_explained():
    write("a.json", {})
    assert "Write dotted.key=value" in only_problem("a.json", "training.steps")
    assert "is an option; there are none" in only_problem("a.json", "--steps=3")
    assert "cannot be overridden" in only_problem("a.json", 'inherits=["b.json"]')
    assert load("a.json", ["run.description=" + "[" * 100_000]).values["run"]["description"][0] == "["
    assert "twice" in only_problem("a.json", 'training={"steps": 1, "steps": 2}')
    for text in ("=3", "a..b=3", "a b=3", ".=1"):
        assert "is not an override" in only_problem("a.json", text)


def test_an_override_of_model_or_data_needs_a_name_of_its_own():
    write("a.json", {"run": {"name": "given"}, "model": {"dropout": 0.1}})
    assert "Add run.name=" in only_problem("a.json", "model.dropout=0.2")
    assert "Add run.name=" in only_problem("a.json", "data.seq_length=8")
    assert load("a.json", ["model.dropout=0.2", "run.name=b"]).values["run"]["name"] == "b"
    load("a.json", ["training.steps=3"])


def test_where_finds_the_place_of_a_value_inside_a_list_and_of_a_missing_key():
    config = LoadedConfig(Path("a.json"), {}, {"data": Origin("p.json"), "data.clean": Origin("q.json", 7)})
    assert config.where("data.clean[1].rule") == "q.json:7"
    assert config.where("data.other") == "p.json"
    assert config.where("model.x") == "a.json"
    assert config.where("") == "a.json"
