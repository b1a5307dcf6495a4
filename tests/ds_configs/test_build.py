"""Sections become typed objects; what does not fit is named, all at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ds_configs import ConfigError, build_section
from ds_configs.errors import FieldError


@dataclass(frozen=True, kw_only=True)
class Inner:
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise FieldError("ratio", f" = {self.ratio}; it must be at most 1.")


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    name: str = "x"
    flag: bool = False
    kind: Literal["flops", "uniform"] = "flops"
    maybe: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    layers: tuple[int, ...] = ()
    rules: list[str | dict[str, Any]] = field(default_factory=list)
    weights: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    maybe_inner: Inner | None = None
    inners: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.count == 13:
            raise FieldError("count", " = 13 is unlucky. Use 12.")
        if self.count == 14:
            raise ValueError("count = 14, and what is wrong with it is not known")


def problems(section: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_section(Outer, section, "model", "a.json")
    return caught.value.problems


def test_defaults_are_kept_and_values_take_their_annotated_type():
    built = build_section(
        Outer,
        {
            "count": 3,
            "betas": [1, 0.5],
            "layers": [0, 1],
            "inner": {"ratio": 1},
            "inners": [{"ratio": 0.1}],
            "weights": {"a": 2},
        },
        "model",
        "a.json",
    )
    assert built.betas == (1.0, 0.5)
    assert type(built.betas[0]) is float
    assert built.layers == (0, 1)
    assert built.inners == (Inner(ratio=0.1),)
    assert type(built.inner.ratio) is float
    assert built.weights == {"a": 2.0}
    assert build_section(Outer, {"count": 1, "rules": ["a", {"rule": "b"}]}, "model", "a.json").rules == ["a", {"rule": "b"}]
    assert build_section(Outer, {"count": 1, "maybe": None}, "model", "a.json").maybe is None


def test_unknown_and_missing_keys_and_wrong_types_are_all_reported_at_once():
    assert problems({"cont": 3, "flag": 1, "inner": {"ration": 0.1}}) == [
        'a.json: unknown key "model.cont". Did you mean "count"?',
        "a.json: model.flag = 1; it must be true or false.",
        'a.json: unknown key "model.inner.ration". Did you mean "ratio"?',
        "a.json: model.count is missing; it must be an integer.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", True, "model.count = true, which is a truth value; it must be an integer."),
        ("count", 1.0, "model.count = 1.0, which is written with a fraction; it must be an integer."),
        ("count", "1", 'model.count = "1", which is a string; it must be an integer.'),
        ("name", 3, """model.name = 3; it must be a string. Put it in quotes; on a command line: 'model.name= "3"'."""),
        ("kind", "flop", 'model.kind = "flop"; it must be one of "flops", "uniform". Did you mean "flops"?'),
        ("kind", 3, 'model.kind = 3; it must be one of "flops", "uniform".'),
        ("maybe", "3", 'model.maybe = "3", which is a string; it must be an integer.'),
        ("maybe", {}, "model.maybe = {}, which is an object; it must be an integer."),
        ("betas", [0.9], "model.betas = [0.9] has 1 entries; it must have 2."),
        ("betas", 0.9, "model.betas = 0.9, which is written with a fraction; it must be a list of a number, then a number."),
        ("layers", [1, "2"], 'model.layers[1] = "2", which is a string; it must be an integer.'),
        ("inner", 3, "model.inner = 3; it must be an object."),
        ("inner", {"ratio": True}, "model.inner.ratio = true, which is a truth value; it must be a number."),
        ("maybe_inner", {"ratio": "1"}, 'model.maybe_inner.ratio = "1", which is a string; it must be a number.'),
        ("inners", [{}, {"ratio": 2}], "model.inners[1].ratio = 2.0; it must be at most 1."),
        ("weights", {"a": "b"}, 'model.weights.a = "b", which is a string; it must be a number.'),
        ("rules", [3], "model.rules[0] = 3; it must be a string or an object."),
    ],
)
def test_a_wrong_value_is_named_with_what_was_wanted(key, value, said):
    assert problems({"count": 1, key: value}) == [f"a.json: {said}"]


def test_what_a_dataclass_says_about_itself_becomes_a_problem_with_its_section():
    assert problems({"count": 13}) == ["a.json: model.count = 13 is unlucky. Use 12."]
    assert problems({"count": 14}) == ["a.json: model: count = 14, and what is wrong with it is not known"]


def test_each_problem_can_name_the_file_its_value_came_from():
    with pytest.raises(ConfigError) as caught:
        build_section(Outer, {"name": 3, "kin": 1}, "model", {"model.name": "p.json", "model.kin": "q.json", "": "run.json"}.__getitem__)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["p.json", "q.json", "run.json"]


def test_a_section_that_is_no_object_is_a_problem():
    assert problems([1]) == ["a.json: model = [1], which is a list; it must be an object."]
