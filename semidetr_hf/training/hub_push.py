"""A run on the Hub: its best network is uploaded beside the training, and once more at the end.

Nothing that goes wrong with the network or the Hub stops the training: it is warned of, and tried again at the next
evaluation. Only the main process uploads.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub.utils import disable_progress_bars

from semidetr_hf.data.sources import Source
from semidetr_hf.hub import TrainingFacts, push, write_bundle
from semidetr_hf.hub.background import BackgroundUpload
from semidetr_hf.hub.upload import require_token
from semidetr_hf.training.baseline import FOLDER
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.networks import BestNetwork
from semidetr_hf.training.processes import on_main_process
from semidetr_hf.training.run_config import RunConfig
from semidetr_hf.training.run_facts import read_facts, record_data
from semidetr_hf.visualization import training_curves

logger = logging.getLogger(__name__)

FINAL_SECONDS = 300.0  # that the end of a run waits for the network at most


class HubPush:
    """The uploads of one run.

    Args:
        config: of the run; `push_to_hub` and the fields after it decide.
        accelerator: says which process uploads.
        sources: `labeled`, `unlabeled`, `val` -> images, None where there are none.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, **sources: Source | None) -> None:
        self.run = config.run
        self.is_wanted = config.run.push_to_hub and accelerator.is_main_process
        self._config = config
        self._accelerator = accelerator
        self._sources = sources
        self._upload = BackgroundUpload()
        self._best: BestNetwork | None = None
        self._is_due = False
        if self.is_wanted:
            disable_progress_bars()  # they would break that of the training
            for name in (
                "huggingface_hub",
                "httpx",
                "httpx2",
            ):  # every try would be a line; the outcome is one of ours
                logging.getLogger(name).setLevel(logging.ERROR)

    def begin(self) -> None:
        """Write down what the data of the run is, which the page of the detector tells; all processes must call it.

        Raises:
            PermissionError: if the run is to be uploaded, and there is no token.
            OSError: if the folder of the run cannot be written.
        """

        def prepare() -> None:
            require_access(self.run)
            record_data(Path(self.run.output_dir), self._config.data, self._sources)

        on_main_process(self._accelerator, prepare)

    def after_evaluation(self, best: BestNetwork | None) -> None:
        """Begin an upload if there is a new best network, or if the last one failed; wait for nothing.

        Args:
            best: of all evaluations up to now.
        """
        if not self.is_wanted or self._upload.is_running:
            return  # what is new by now is uploaded at the next evaluation
        self._settle("it is tried again now")
        self._is_due = self._is_due or best != self._best
        self._best = best
        if self._is_due and best is not None:
            self._begin(f"Step {best.step}: {best.network}, AP {best.metrics.ap:.3f}")

    def end(self, *, is_last: bool, seconds: float = FINAL_SECONDS) -> None:
        """Wait for the upload, and make a last one of all that the run has left.

        Args:
            is_last: False if the folder of the run is still changed: then nothing more is uploaded here.
            seconds: that it may take at most.
        """
        if not self.is_wanted:
            return
        deadline = time.monotonic() + seconds
        finished = self._upload.wait(seconds)
        if finished:
            self._settle("it is tried once more" if is_last else "it is tried again at the end")
        if finished and is_last and self._begin("End of the training"):
            finished = self._upload.wait(max(0.0, deadline - time.monotonic()))
            if finished:
                self._settle(self._by_hand())
        if not finished:
            logger.warning("%s: not uploaded within %.0f seconds; %s", self.run.repository, seconds, self._by_hand())

    def _begin(self, message: str) -> bool:
        """Put together what is in the folder now, since the training goes on to change it, and begin to send it."""
        try:
            staged = _stage(self.run)
        except (OSError, ValueError) as error:
            self._is_due = True
            reason = " ".join(str(error).split())
            logger.warning("nothing was put together for the Hub (%s); %s", reason, self._by_hand())
            return False
        self._is_due = False
        self._upload.begin(_sending(staged, self.run, message))
        return True

    def _settle(self, then: str) -> None:
        """Tell what came of the last upload, and what is done if it failed."""
        outcome = self._upload.take_outcome()
        if isinstance(outcome, Exception):
            self._is_due = True
            logger.warning("%s; %s", " ".join(str(outcome).split()) or type(outcome).__name__, then)
        elif outcome is not None:
            logger.info("uploaded: %s", outcome)

    def _by_hand(self) -> str:
        return f"`semidetr push {_newest(Path(self.run.output_dir))} {self.run.repository}` uploads it by hand"


def _stage(run: RunConfig) -> "tempfile.TemporaryDirectory[str]":
    staged = tempfile.TemporaryDirectory(prefix=".push-", dir=run.output_dir)
    try:
        bundle_detector(_newest(Path(run.output_dir)), Path(staged.name), run.repository)
    except BaseException:
        staged.cleanup()
        raise
    return staged


def _sending(staged: "tempfile.TemporaryDirectory[str]", run: RunConfig, message: str) -> Callable[[], str]:
    def send() -> str:
        with staged as folder:
            return push(folder, run.repository, private=run.hub_private_repo, message=message)

    return send


def _newest(output_dir: Path) -> Path:
    """Return the folder of the best network; without validation images that of the averaged one."""
    return output_dir / ("best" if (output_dir / "best").is_dir() else "teacher")


def require_access(run: RunConfig) -> None:
    """Refuse a run that is to be uploaded where there is no token.

    Raises:
        PermissionError: says how to get one.
    """
    if run.push_to_hub:
        require_token()


def bundle_detector(
    detector: Path,
    folder: Path,
    repo_id: str,
    *,
    other_runs: Sequence[TrainingFacts] = (),
    examples: Sequence[Path] = (),
    license: str = "apache-2.0",
) -> list[Path]:
    """Put together what is uploaded of a saved detector, with what its run tells if it lies in the folder of one.

    Args:
        detector: its folder.
        folder: to be written.
        repo_id: of the repository.
        other_runs: the same recipe with other labels or seeds, for the card.
        examples: pictures to try it on, which become public.
        license: identifier of the Hub for the licence of the weights.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError, ValueError: if the detector is not whole, an example is missing, or a file of the run is
            not what a run writes.
        OSError: if a file cannot be written.
    """
    facts, run = read_facts(detector), detector.parent
    with tempfile.TemporaryDirectory() as scratch:
        curves = None if facts is None else _draw_curves(run, Path(scratch) / "curves.png")
        return write_bundle(
            detector,
            folder,
            repo_id,
            facts=facts,
            other_runs=other_runs,
            log=None if facts is None else run / "log.jsonl",
            curves=curves,
            examples=examples,
            license=license,
        )


def _draw_curves(run: Path, path: Path) -> Path | None:
    """Draw loss and AP of a run and of its baseline; None where nothing was logged, or nothing can draw."""
    logs = {"this run": JsonlLog(run / "log.jsonl").rows(), "supervised": JsonlLog(run / FOLDER / "log.jsonl").rows()}
    logs = {name: rows for name, rows in logs.items() if rows}
    if not logs or find_spec("matplotlib") is None:
        return None
    training_curves(logs, path)
    return path
