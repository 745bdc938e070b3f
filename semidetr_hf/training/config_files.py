"""The YAML file of a run, read strictly."""

import os
from pathlib import Path
from typing import Any

import yaml


class DistinctKeysLoader(yaml.SafeLoader):
    """The safe loader of YAML, which by itself lets the last of two values of the same name win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node, unless it has a key twice."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} is given twice, remove one of them", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not YAML, gives a name twice, or does not hold a mapping whose values are mappings.
    """
    path = Path(path)
    # Of a name that no disk can hold Path.is_file raises instead of denying it.
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=DistinctKeysLoader)  # a safe loader
    # ValueError: text in another encoding, or a date or number that cannot be; RecursionError: nested too deeply; the
    # others: a value that its tag does not fit, such as `!!bool x`.
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a YAML file in UTF-8 ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict) or not all(isinstance(part, dict | None) for part in values.values()):
        raise ValueError(f"{path}: must hold sections such as `data:` with one `name: value` per line below them")
    return values
