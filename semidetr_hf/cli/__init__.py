"""The command `semidetr`: `app` has the list of commands, every other file is one of them."""

from .app import main

__all__ = ["main"]
