"""The linter of transformers' own models: what it finds in the model folder is known and has a reason."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import semidetr_hf

CONFIGURATION, MODELING, PROCESSING = (
    f"{kind}_semidetr.py" for kind in ("configuration", "modeling", "image_processing")
)
# (file, rule) -> how often. Why each is not followed outside the library:
# TRF023 wants `hidden_size` for `d_model`: the name of all detectors of the DETR family; `hidden_size` reads it too.
# TRF028 wants the licence header of the library: the licence of this package stands in LICENSE.
# TRF029 wants number of heads and points read from the configuration inside the attention: encoder and decoder have
#        different fields for them, as Deformable DETR has.
# TRF036 wants no `nn.Sequential`: convolution and norm of a level keep the names that published checkpoints have.
# TRF041 wants notes on which published checkpoints take a branch: there are none of this model type yet.
# TRF057 wants `@auto_docstring`: outside the library it calls the configuration that of "a None", the docstrings here
#        are written by hand.
KNOWN = Counter(
    {
        (CONFIGURATION, "TRF023"): 1,
        (CONFIGURATION, "TRF028"): 1,
        (CONFIGURATION, "TRF057"): 1,
        (PROCESSING, "TRF028"): 1,
        (PROCESSING, "TRF057"): 2,
        (MODELING, "TRF028"): 1,
        (MODELING, "TRF029"): 1,
        (MODELING, "TRF036"): 1,
        (MODELING, "TRF041"): 1,
        (MODELING, "TRF057"): 7,
    }
)


def test_findings_are_the_known_ones(tmp_path):
    report = tmp_path / "report.json"
    command = [Path(sys.executable).with_name("mlinter"), "--no-progress", "--no-cache", "--output-json", report]
    folder = Path(semidetr_hf.__file__).parent / "model"
    subprocess.run([*map(str, command), str(folder)], capture_output=True, cwd=tmp_path, timeout=120)
    findings = json.loads(report.read_text())["findings"]
    assert Counter((Path(finding["path"]).name, finding["rule"]) for finding in findings) == KNOWN
