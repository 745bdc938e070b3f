import contextlib
import io
import json
import math
import re
import types
import typing
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from semidetr_hf.model import SemiDetrConfig
from semidetr_hf.ssod.schedule import StageSchedule
from semidetr_hf.structures import Stage
from semidetr_hf.training.command_line import parse_config
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml
from semidetr_hf.training.optimizer import learning_rate_factor
from semidetr_hf.training.setup import build_schedule

SECTIONS = get_type_hints(TrainingConfig)
FIELDS = [(section, name, hint) for section, kind in SECTIONS.items() for name, hint in get_type_hints(kind).items()]
FIELD_NAMES = {name for _, name, _ in FIELDS}
ODD_TEXT = st.sampled_from(["", " ", "none", "null", "~", "1e-4", "yes", "a: b", "#", "x\ny", "\r", "\0", "'", "é"])
# Line breaks of Unicode alone are left out: PyYAML writes them in a way that it reads back as blanks.
TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029"), max_size=5) | ODD_TEXT
NUMBERS = (
    st.integers(-3, 3)
    | st.integers(0, 2000)
    | st.floats(0, 1)
    | st.floats()
    | st.sampled_from([10**30, 1e308, 5e-324])
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of the right type, most of them within the range of some field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values_of, arguments))
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 20) | st.integers(1000, 3000),
        float: st.floats(0, 1) | st.floats(0, 1e6),
        str: TEXT,
        type(None): st.none(),
    }
    return plain[hint]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type, bools not being numbers."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, argument) for argument in arguments)
    if origin is list:
        return type(value) is list and all(fits(item, arguments[0]) for item in value)
    return type(value) in (int, float) if hint is float else type(value) is hint


def from_dict_or_complaint(values: dict[str, Any]) -> TrainingConfig | None:
    """Return the configuration, or None after a complaint of one line that begins with a field or names a part."""
    try:
        return TrainingConfig.from_dict(values)
    except ValueError as error:
        (line,) = str(error).splitlines()
        field = re.match(r"(\w+)=", line)
        assert (field is not None and field[1] in FIELD_NAMES) or line.startswith(("`", "the configuration")), line
        return None


SMALLEST: dict[str, Any] = {"data": {"labeled": "x.json"}, "run": {"output_dir": "out"}}


@st.composite
def changes(draw: st.DrawFn, values: Any = values_of, max_size: int = 6) -> list[tuple[str, str, Any]]:
    """Fields with new values, which need not be allowed."""
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=max_size))
    return [(section, name, draw(values(hint))) for section, name, hint in fields]


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    """Any configuration that is allowed: changes that are not, also beside the earlier ones, are left out."""
    config = TrainingConfig.from_dict(SMALLEST)
    for section, name, value in draw(changes()):
        values = config.to_dict()
        values[section][name] = value
        config = from_dict_or_complaint(values) or config
    return config


# ---- The configuration of a run


@given(configs())
def test_a_configuration_comes_back_from_dict_and_file(tmp_path_factory: pytest.TempPathFactory, config: Any) -> None:
    assert TrainingConfig.from_dict(config.to_dict()) == config
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    config.save(path)
    assert TrainingConfig.from_dict(read_yaml(path)) == config
    # A copy shares nothing with its configuration.
    config.to_dict()["data"]["short_edges"].append(7)
    assert TrainingConfig.from_dict(read_yaml(path)) == config


@given(changes(values=lambda hint: ANYTHING | values_of(hint), max_size=3))
def test_any_value_of_any_field_is_taken_as_it_is_or_named(given_values: list[tuple[str, str, Any]]) -> None:
    values = {section: dict(part) for section, part in SMALLEST.items()}
    for section, name, value in given_values:
        values.setdefault(section, {})[name] = value
    config = from_dict_or_complaint(values)
    if config is None:
        return
    for section, name, hint in FIELDS:
        value = getattr(getattr(config, section), name)
        assert fits(value, hint)
        assert not isinstance(value, float) or math.isfinite(value)
        if name in values.get(section, {}):
            assert value == values[section][name]


def has_plain_keys(content: dict[str, Any]) -> bool:
    """Whether a complaint that lists all keys stays one line."""
    return all(len(key.splitlines()) <= 1 and not key.endswith(("\r", "\n")) for key in content)


@given(
    st.sampled_from([*SECTIONS, "dat"]),
    NUMBERS
    | TEXT
    | st.lists(NUMBERS)
    | st.dictionaries(TEXT | st.sampled_from(sorted(FIELD_NAMES)), NUMBERS).filter(has_plain_keys),
)
def test_a_section_of_any_content_is_taken_or_named(section: str, content: Any) -> None:
    config = from_dict_or_complaint({**SMALLEST, section: content})
    if config is not None:
        assert not content or set(content) <= {name for where, name, _ in FIELDS if where == section}


YAML_PIECES = st.lists(
    st.sampled_from(["data", "run", ":", ": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ",", "1", "1e3", "null", "? "])
    | st.sampled_from(
        ["&a ", "*a", "<<: ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!map ", "!!seq ", "!!binary "]
    )
    | st.sampled_from(
        ["!!omap ", "!!set ", "!!python/name:os.system ", "2001-99-99", "0x_", "1:99", "'", '"', "|", "#", "\t", "%"]
    )
    | TEXT,
    max_size=12,
)


@given(YAML_PIECES.map("".join))
@example("data: " + "[" * 3000)
@example("data: {labeled: !!bool x}")
@example("data: {labeled: !!timestamp x}")
@example("data: {labeled: !!int ''}")
@example("data: !!map [1]")
def test_a_file_of_any_content_is_a_mapping_or_named(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        values = read_yaml(path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert all(part is None or isinstance(part, dict) for part in values.values())
        from_dict_or_complaint(values)


# ---- Flags


def parse_or_status(arguments: list[str]) -> TrainingConfig | int | None:
    """Return the configuration, the status with which the program would end, or None after a complaint."""
    with contextlib.redirect_stderr(io.StringIO()) as complaint, contextlib.redirect_stdout(io.StringIO()):
        try:
            return parse_config(arguments)
        except SystemExit as error:
            assert error.code == 0 or "error: " in complaint.getvalue()
            return int(error.code or 0)
        except (ValueError, FileNotFoundError) as error:
            assert len(str(error).splitlines()) == 1 or any(len(word.splitlines()) > 1 for word in arguments)
            return None


WORDS = (
    TEXT
    | NUMBERS.map(str)
    | st.sampled_from(["true", "paper", "reference", "cosine", "nano", "--", "-", "=", "9" * 5000])
    | st.sampled_from(["--config", "--method", "--no_", *(f"--{name}" for name in sorted(FIELD_NAMES))])
)


@given(
    st.lists(WORDS | st.tuples(st.sampled_from(sorted(FIELD_NAMES)), TEXT).map("--{0[0]}={0[1]}".format), max_size=6)
)
def test_any_flags_are_a_configuration_a_complaint_or_a_wrong_usage(words: list[str]) -> None:
    assume(not {"-h", "--help"} & set(words))
    result = parse_or_status(["--labeled", "x.json", "--output_dir", "out", *words])
    assert result is None or result == 2 or isinstance(result, TrainingConfig)


@given(changes())
def test_flags_say_what_a_file_says(given_values: list[tuple[str, str, Any]]) -> None:
    values = {section: dict(part) for section, part in SMALLEST.items()}
    flags: dict[str, list[str]] = {}
    for section, name, value in given_values:
        # A flag of the share takes the place of the number of steps, and no flag is no text.
        if name == "one_to_many_fraction" or (value is None and "str" in str(get_type_hints(SECTIONS[section])[name])):
            continue
        words = [str(item) for item in value] if isinstance(value, list) else []
        if any(word.startswith("-") for word in words):
            continue
        values.setdefault(section, {})[name] = value
        flags[name] = [f"--{name}", *words] if isinstance(value, list) else [f"--{name}={value}"]
    arguments = [word for words in flags.values() for word in words]
    named = [] if "labeled" in flags else ["--labeled", "x.json"]
    named += [] if "output_dir" in flags else ["--output_dir", "out"]
    assert parse_or_status([*named, *arguments]) == from_dict_or_complaint(values)


# ---- What a run takes from it


@given(configs())
def test_stages_follow_each_other_once_and_weights_are_not_negative(config: TrainingConfig) -> None:
    schedule = build_schedule(config)
    steps = sorted(
        {0, *(max(0, config.schedule.first_stage_steps + d) for d in (-1, 0, 1)), config.schedule.num_steps}
    )
    stages = [schedule.stage_at(step) for step in steps]
    assert stages == sorted(stages, key=[Stage.ONE_TO_MANY, Stage.ONE_TO_ONE].index)
    assert stages[-1] is Stage.ONE_TO_ONE and 0 <= config.schedule.first_stage_steps <= config.schedule.num_steps
    assert (stages[0] is Stage.ONE_TO_MANY) == (config.schedule.first_stage_steps > 0)
    for stage in Stage:
        weights = schedule.loss_weights(stage)
        assert 0 <= weights.pseudo < math.inf and 0 <= weights.consistency
    assert schedule.uses_unlabeled(config.schedule.num_steps - 1)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 5000), st.integers(0, 10_000))
def test_the_momentum_rises_from_a_copy_to_its_maximum(maximum: float, warmup: int, update: int) -> None:
    schedule = StageSchedule(max_ema_momentum=maximum, ema_warmup=warmup)
    first, here, later = (schedule.ema_momentum(number) for number in (0, update, update + 1))
    assert first == 0 and 0 <= here <= later <= maximum
    assert schedule.ema_momentum(10**12) == pytest.approx(maximum, abs=1e-8)


@st.composite
def courses(draw: st.DrawFn) -> dict[str, Any]:
    num_steps = draw(st.integers(1, 200))
    drops = draw(st.lists(st.integers(1, num_steps), max_size=3, unique=True).map(sorted))
    return {
        "schedule": draw(st.sampled_from(["constant", "step", "cosine"])),
        "num_steps": num_steps,
        "warmup_steps": draw(st.integers(0, num_steps - 1)),
        "drop_steps": drops,
        "drop_factor": draw(st.floats(0.01, 1)),
    }


@given(courses())
def test_the_learning_rate_rises_in_equal_steps_and_falls_after_the_warm_up(course: dict[str, Any]) -> None:
    factors = [learning_rate_factor(step, **course) for step in range(course["num_steps"] + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    warmup = course["warmup_steps"]
    reached = [factor * (step >= warmup) for step, factor in enumerate(factors)][warmup:]
    assert all(low >= high for low, high in zip(reached, reached[1:], strict=False))
    if course["schedule"] == "constant":
        assert reached == [1.0] * len(reached)
    if course["schedule"] == "cosine":
        assert factors[-1] == pytest.approx(0, abs=1e-12) and reached[0] == 1
        # No jump: a cosine of n steps is nowhere steeper than pi / 2n.
        steepest = math.pi / 2 / (course["num_steps"] - warmup) + 1e-9
        assert all(low - high <= steepest for low, high in zip(reached, reached[1:], strict=False))
    rising = factors[: min([warmup, *course["drop_steps"]]) if course["schedule"] == "step" else warmup]
    assert rising == pytest.approx([(step + 1) / warmup for step in range(len(rising))])


# ---- The configuration of a detector

CHECKED = sorted(SemiDetrConfig.__annotations__.keys() - {"backbone_config", "num_labels"})


@given(
    st.dictionaries(
        st.sampled_from(CHECKED), NUMBERS | TEXT | st.sampled_from(["gelu", "process", 32, 64]), max_size=3
    )
)
@example({"position_embedding_temperature": 0})
@example({"position_embedding_temperature": math.nan})
@example({"activation_function": "rellu"})
@example({"d_model": 0})
@example({"class_cost": 10**400})
def test_a_detector_of_any_fields_comes_back_from_its_file_or_names_one(overrides: dict[str, Any]) -> None:
    try:
        config = SemiDetrConfig.nano(**overrides)
    except (ValueError, StrictDataclassError) as error:
        assert any(name in str(error) for name in overrides)
        return
    values = json.loads(json.dumps(config.to_dict()))
    again = SemiDetrConfig.from_dict(values)
    assert again.to_dict() == config.to_dict()
    for name in CHECKED:
        value = getattr(again, name)
        assert value == overrides.get(name, getattr(SemiDetrConfig.nano(), name))
        assert not isinstance(value, float) or math.isfinite(value)
    assert again.position_embedding_temperature > 0 and again.d_model > 0 and again.activation_function in ACT2FN
