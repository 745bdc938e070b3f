"""Started by test_interruptions.py: runs `examples/train_ssod.py` each time in new processes.

The libraries, which take longer to import than the small runs last, are imported once; the processes are forked. A
line on stdin asks for a run: a JSON object with the `arguments` of the program, the number of `processes`, the `port`
where several of them meet, and `output`, whose endings `.out` and `.err` are the files for what they print. Two lines
of JSON answer: at once the ids of the processes, and their exit statuses when all have ended.
"""

import json
import os
import sys
from typing import Any

from example_modules import load_example

main = load_example("train_ssod").main


def run_forked(order: dict[str, Any], rank: int) -> int:
    """The id of a new process, which leads a group of its own and never returns from here."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{order['output']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if order["processes"] > 1:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["processes"], "MASTER_PORT": order["port"]}
        os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")
    sys.exit(main(order["arguments"]))


def tell(numbers: list[int]) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        pids = [run_forked(order, rank) for rank in range(order["processes"])]
        tell(pids)
        tell([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
