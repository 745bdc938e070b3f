"""Reads the recorded numbers in tests/fixtures."""

from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"


def load_recorded(name: str) -> dict:
    """Read a fixture as nested dictionaries of tensors; the key "a/0/b" becomes ["a"][0]["b"]."""
    root: dict = {}
    with np.load(FIXTURES / name, allow_pickle=False) as archive:
        for key in archive.files:
            node, *parts = root, *key.split("/")
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            value = archive[key]
            if value.dtype.kind == "U":
                node[parts[-1]] = str(value)
            elif value.dtype == np.float16:  # stored without loss
                node[parts[-1]] = torch.from_numpy(value.astype(np.float32))
            else:
                node[parts[-1]] = torch.from_numpy(value)
    return _lists(root)


def _lists(node):
    if not isinstance(node, dict):
        return node
    node = {key: _lists(value) for key, value in node.items() if key != "__empty__"}
    return [node[str(i)] for i in range(len(node))] if node and all(key.isdigit() for key in node) else node
