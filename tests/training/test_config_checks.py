"""The messages of a wrong configuration: one line with field, value and what is accepted."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from semidetr_hf.training.config_checks import check_names, check_types, require


@dataclass
class Settings:
    count: Any = 1
    rate: Any = 0.5
    mode: Any = "fast"
    sizes: Any = None


# What the fields say of themselves; a dataclass of `Any` takes every value to be checked.
Settings.__annotations__ = {"count": int, "rate": float, "mode": Literal["fast", "slow"], "sizes": list[int] | None}


@pytest.mark.parametrize(
    "values",
    [{}, {"count": 0}, {"rate": 2}, {"rate": -1e-9}, {"mode": "slow"}, {"sizes": []}, {"sizes": [1, 2]}],
)
def test_values_of_the_right_type_pass(values: dict[str, Any]) -> None:
    check_types(Settings(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.0}, "count=1.0: must be a whole number"),
        ({"count": True}, "count=True: must be a whole number"),
        ({"count": None}, "count=None: must be a whole number"),
        ({"count": "1"}, "count='1': must be a whole number"),
        ({"rate": False}, "rate=False: must be a number"),
        ({"rate": "1e-4"}, "rate='1e-4': must be a number, in YAML with a point (1.0e-4)"),
        ({"mode": "Fast"}, "mode='Fast': must be one of fast, slow"),
        ({"sizes": (1, 2)}, "sizes=(1, 2): must be a list of a whole number values or none"),
        ({"sizes": [1, "2"]}, "sizes=[1, '2']: must be a list of a whole number values or none"),
    ],
)
def test_values_of_another_type_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_types(Settings(**values))
    assert str(caught.value) == message


def test_a_condition_that_does_not_hold() -> None:
    require(Settings(), "count", True, "at least 1")
    with pytest.raises(ValueError, match="^count=0: must be at least 1$"):
        require(Settings(count=0), "count", False, "at least 1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 1, "b": 2, "z": 3, 7: 4}, "`part` has unknown 7, z; known are a, b"),
        ({"b": 2}, "`part` lacks a, which has no default"),
        ([("a", 1)], "`part` is [('a', 1)]: must be a mapping of names to values"),
        (None, "`part` is None: must be a mapping of names to values"),
    ],
)
def test_names(given: Any, message: str) -> None:
    check_names("`part`", {"a": 1}, known={"a", "b"}, required={"a"})
    with pytest.raises(ValueError) as caught:
        check_names("`part`", given, known={"a", "b"}, required={"a"})
    assert str(caught.value) == message
