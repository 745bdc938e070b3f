"""Which settings of a run are its own choice."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from semidetr_hf.training.config import TrainingConfig


def changed_fields(config: TrainingConfig) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield part, field, value and default of what a run chose otherwise than by default.

    Fields without a default, such as the paths of the data, are always among them; their default is `MISSING`.
    """
    for part, section in get_type_hints(TrainingConfig).items():
        values = getattr(config, part)
        for field in fields(section):
            value, default = getattr(values, field.name), field.default
            if default is MISSING and field.default_factory is not MISSING:
                default = field.default_factory()
            if value != default:
                yield part, field.name, value, default
