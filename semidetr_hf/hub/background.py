"""An upload beside the training: one at a time, in a thread that holds up neither steps nor the end of the process."""

import threading
from collections.abc import Callable


class BackgroundUpload:
    """Runs an upload in a thread, and keeps what came of it until it is asked for.

    The threads of huggingface_hub (`run_as_future`) are waited for when the process ends, however long the network
    hangs; this one is not. A commit that breaks off leaves the repository as it was.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: str | Exception | None = None

    @property
    def is_running(self) -> bool:
        """Whether an upload has begun and is not over."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, upload: Callable[[], str]) -> None:
        """Begin an upload.

        Args:
            upload: returns the address; whatever it raises is kept, too.

        Raises:
            RuntimeError: if one is running.
        """
        if self.is_running:
            raise RuntimeError("an upload is running; wait for it")

        def run() -> None:
            try:
                self._outcome = upload()
            except Exception as error:  # whatever it is, it must not be lost with the thread
                self._outcome = error

        self._thread = threading.Thread(target=run, name="upload", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until the upload is over, at most so long; return whether it is, also if there was none."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.is_running

    def take_outcome(self) -> str | Exception | None:
        """Return the address or the error of the last upload, once; None if there is none (any more)."""
        outcome, self._outcome = self._outcome, None
        return outcome
