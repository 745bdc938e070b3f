"""A Python process on a machine where this package is not installed and that, unless asked for, has no network."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

OURS = ("semidetr_hf", "__editable__")
# Goes before the code: what it proves would be worth nothing with the package in reach.
PREAMBLE = """
import importlib.metadata, importlib.util
assert importlib.util.find_spec("semidetr_hf") is None
assert "semidetr-hf" not in {each.name for each in importlib.metadata.distributions()}
"""
NO_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError("tried to connect")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
"""


def run_without_package(
    code: str, *arguments: str | Path, folder: Path, may_connect: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run code with the installed libraries but this package.

    Args:
        code: of a program, which finds `arguments` in `sys.argv[1:]`.
        arguments: of the program.
        folder: for the list of libraries and the cache of remote code; the program runs in it.
        may_connect: whether it may use the network, to reach a server of the test.

    Returns:
        What the program printed, and its status.
    """
    libraries = folder / "libraries"
    libraries.mkdir(exist_ok=True)
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            link = libraries / entry.name
            if not entry.name.startswith(OURS) and not link.is_symlink():
                link.symlink_to(entry)
    preamble = PREAMBLE if may_connect else NO_NETWORK + PREAMBLE
    environment = {
        **os.environ,
        "PYTHONPATH": str(libraries),
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        # -S: without the folder of installed libraries, and what its .pth files add.
        [sys.executable, "-S", "-c", f"{preamble}\n{code}", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
