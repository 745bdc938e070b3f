"""Run by test_recipe.py under `torchrun`: a recipe with trial steps, of which every process says what it got."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from semidetr_hf.training.command_line import parse_config
from semidetr_hf.training.recipe import train_with_baseline


def main(config_file: str, folder: Path) -> None:
    config = parse_config(["--config", config_file])
    config = replace(config, run=replace(config.run, output_dir=str(folder / "out")))
    said: list[str] = []
    result = train_with_baseline(config, say=said.append)
    report = {"result": result.to_dict(), "said": said}
    (folder / f"process{os.environ['RANK']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
