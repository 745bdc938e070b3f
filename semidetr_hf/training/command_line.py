"""From command-line flags, one per field, and a file to the configuration of a run."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser

from semidetr_hf.training import presets
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml

logger = logging.getLogger(__name__)

_NOT_GIVEN = object()


def parse_config(
    arguments: Sequence[str] | None = None, *, description: str | None = None, program: str | None = None
) -> TrainingConfig:
    """Read a configuration from command-line flags, one per field, on top of an optional `--config FILE.yaml`.

    Below both, `--preset` gives settings for a kind of data or machine, see `presets.SETTINGS`. Below all, `--method`
    chooses what is left open: the paper's reading of the method, which is the default of every field, or that of the
    released code, see `presets.DIFFERENCES`.

    Args:
        arguments: the flags; None for those of the process.
        description: for `--help`.
        program: its name there; None for that of the process.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a value or the file is wrong; names the field or the file.
        SystemExit: after `--help`, or with status 2 if a flag is unknown or not of the right kind.
    """
    sections = get_type_hints(TrainingConfig)
    parser = _flag_parser(sections, description, program)
    names = [field.name for section in sections.values() for field in fields(section)]
    given = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names, _NOT_GIVEN))))
    values = {} if given["config"] is None else read_yaml(given["config"])
    defaults, chosen = presets.method(given["method"] or "paper"), presets.SETTINGS.get(given["preset"], {})
    if given["method"] is not None:
        _warn_of_overridden(f"--method {given['method']}", defaults, values)
    _warn_of_overridden(f"--preset {given['preset']}", chosen, values)
    for name, section in sections.items():
        flags = {field.name: given[field.name] for field in fields(section) if given[field.name] is not _NOT_GIVEN}
        if "one_to_many_fraction" in flags:
            # A preset or its file gives the steps, which would take precedence over the flag.
            flags.setdefault("one_to_many_steps", None)
        values[name] = {**defaults.get(name, {}), **chosen.get(name, {}), **(values.get(name) or {}), **flags}
    return TrainingConfig.from_dict(values)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the lines of the description, and say defaults."""


def _flag_parser(sections: dict[str, Any], description: str | None, program: str | None) -> HfArgumentParser:
    for name, section in sections.items():
        # HfArgumentParser looks for the title of the flags there.
        section._argument_group_name = f"{name}: {section.__doc__.splitlines()[0].rstrip('.')}"
    parser = HfArgumentParser(
        list(sections.values()),
        prog=program,
        description=description,
        usage="%(prog)s [--preset NAME] [--config RUN.yaml] [--method NAME] [--FIELD VALUE ...]",
        formatter_class=_HelpFormatter,
        # Otherwise the mistyped --learning_rat would be taken for --learning_rate.
        allow_abbrev=False,
    )
    for action in parser._actions:
        # What the parser requires may stand in the file; `from_dict` asks for it once the two are put together.
        action.required = False
        if action.nargs == "+":
            action.nargs = "*"  # an empty list is a value, too
        elif action.type in (int, float) and _may_be_none(sections, action.dest):
            action.type = _or_none(action.type)
        if action.dest != "help":
            action.metavar = action.metavar or (None if action.choices else "VALUE")
        if action.default is None:
            action.default = argparse.SUPPRESS  # "none" would say less than the help, which tells what happens then
    parser.add_argument("--config", help="YAML file such as the config.yaml of a run; flags take precedence")
    parser.add_argument(
        "--preset",
        choices=presets.SETTINGS,
        help="settings for tens of labels, for one GPU of 24 GB, or for eight GPUs; file and flags take precedence",
    )
    parser.add_argument(
        "--method",
        choices=get_args(presets.Method),
        help="defaults of the fields in which the paper and its released code differ (default: paper); file and flags "
        "take precedence",
    )
    return parser


def _may_be_none(sections: dict[str, Any], field: str) -> bool:
    hints = {name: hint for section in sections.values() for name, hint in get_type_hints(section).items()}
    return NoneType in get_args(hints[field])


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse: "invalid float value"
    return read


def _warn_of_overridden(flag: str, defaults: dict[str, dict[str, Any]], values: dict[str, Any]) -> None:
    """Say which fields a file decides otherwise than a flag: that of a preset or an earlier run has all of them."""
    overridden = [
        name
        for section, part in defaults.items()
        for name, value in part.items()
        if (values.get(section) or {}).get(name, value) != value
    ]
    if overridden:
        logger.warning("%s: --config decides otherwise on %s", flag, ", ".join(overridden))
