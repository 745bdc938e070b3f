"""Write tests/BAD_INPUTS.md, the table of all bad inputs: python tests/bad_inputs/write_table.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS / "BAD_INPUTS.md"

if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # in place of the folder of this file

from bad_inputs import checkpoints, command_line, configuration, data, environment, pictures, resuming  # noqa: E402
from bad_inputs.case import PROGRAMS, Case  # noqa: E402

AREAS: dict[str, Sequence[Case]] = {
    "Annotations and splits": data.CASES,
    "Pictures and Pascal VOC": pictures.CASES,
    "Settings": configuration.CASES,
    "Command line": command_line.CASES,
    "Saved detectors and checkpoints": checkpoints.CASES,
    "Going on with a run": resuming.CASES,
    "The machine": environment.CASES,
}
ALL_CASES = [case for cases in AREAS.values() for case in cases]
HEAD = """# Bad inputs

What can be wrong, and what happens then. `test_bad_input.py` brings every row about and checks it: the exit status,
the one line on stderr, that there is no stack trace, and that no input and no earlier result is changed. Written by
`python tests/bad_inputs/write_table.py`.
"""


def table() -> str:
    """Return the text of the file."""
    lines, number = [HEAD], 0
    for area, cases in AREAS.items():
        lines += [f"## {area}", "", "| | What is wrong | Program | What happens | Status |", "|-|-|-|-|-|"]
        for case in cases:
            number += 1
            lines.append(f"| {number} | {case.title} | {PROGRAMS[case.program]} | {case.happens} | {case.status} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
