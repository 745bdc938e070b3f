"""Every test starts from the same random state, on one thread."""

import signal

import pytest
import torch

# Tiny networks gain nothing from several threads, and on a busy machine waiting for each other takes them minutes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


# A shell starts what it puts into the background with Ctrl-C ignored, which would be inherited by everything here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
