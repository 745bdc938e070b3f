"""Fields of a configuration, and how it says what is wrong with one: its name, its value, and what is accepted."""

from dataclasses import MISSING, field
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

MAX_INT = 2**53  # exact as a floating-point number, too


def option(default: Any = MISSING, *, help: str) -> Any:
    """Return a dataclass field with a help text; a list default is copied for every instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def require(config: object, name: str, holds: bool, accepted: str) -> None:
    """Raise a ValueError with field, value and what is accepted, unless the condition holds."""
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: must be {accepted}")


def check_names(where: str, given: Any, *, known: set[str], required: set[str]) -> None:
    """Raise a ValueError unless `given` is a mapping with all required and only known names."""
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {given!r}: must be a mapping of names to values")
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        meant = f" (is {near[0]} meant?)" if near else ""
        raise ValueError(f"{where} has unknown {', '.join(unknown)}{meant}; known are {', '.join(sorted(known))}")
    missing = sorted(required - set(given))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}, which has no default")


def check_types(config: Any) -> None:
    """Refuse values of a wrong type, such as the text that YAML makes of 1e-4."""
    # HfArgumentParser narrows `field.type` in place (`str | None` becomes `str`); the annotations stay whole.
    for name, expected in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _has_type(value, expected):
            hint = ", in YAML with a point (1.0e-4)" if isinstance(value, str) and _has_type(1.0, expected) else ""
            raise ValueError(f"{name}={value!r}: must be {_type_name(expected)}{hint}")
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise ValueError(f"{name}={value!r}: must be at most {MAX_INT}, as every whole number")


def _has_type(value: Any, expected: Any) -> bool:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_has_type(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, int | float) if expected is float else isinstance(value, expected)


def _type_name(expected: Any) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is UnionType:
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is list:
        return f"a list of {_type_name(arguments[0])} values"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "none"}
    return names[expected]
