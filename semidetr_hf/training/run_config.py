"""How a run is carried out, recorded, resumed, and watched over; nothing here is part of the method."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.utils import validate_repo_id

from semidetr_hf.training.config_checks import check_types, option, require


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run is carried out and recorded.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    output_dir: str = option(help="folder for checkpoints, logs and the resolved configuration")
    seed: int = option(0, help="seed of everything random")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", help="number format of the forward pass")
    gradient_checkpointing: bool = option(
        False, help="compute layers again in the backward pass instead of keeping what they need: slower, less memory"
    )
    teacher_precision: Literal["auto", "same", "bf16"] = option(
        "auto",
        help="number format in which the teacher labels images: `same` as the student, `bf16`, or `auto` = bf16 where "
        "the device multiplies it in hardware",
    )
    gradient_accumulation_steps: int = option(1, help="batches per optimizer step")
    log_every: int = option(50, help="steps between two lines of the log")
    eval_every: int = option(4000, help="steps between two evaluations")
    evaluated_networks: list[str] = option(
        ["student", "teacher"], help="networks that are evaluated and may become the best checkpoint"
    )  # released code: the teacher alone
    instruments: bool = option(
        False,
        help="measure pseudo-labels against known labels of the unlabeled images, and evaluate with and without NMS",
    )
    resume: str | None = option(
        None, help="go on with an interrupted run: `auto` for the newest checkpoint in output_dir, or its folder"
    )
    overwrite: bool = option(False, help="replace an earlier run in output_dir")
    save_every: int | None = option(None, help="steps between two checkpoints (default: eval_every, at most 1000)")
    keep_checkpoints: int = option(2, help="newest checkpoints that are kept, besides that of the best evaluation")
    trackers: list[str] = option([], help="trackers of Accelerate to report to, such as tensorboard")
    # The names are those of transformers' TrainingArguments.
    push_to_hub: bool = option(
        False, help="upload the best network to the Hub at every evaluation that has a new one, beside the training"
    )
    hub_model_id: str | None = option(
        None, help="repository of the upload, NAME or OWNER/NAME (default: the name of output_dir)"
    )
    hub_private_repo: bool = option(False, help="if the repository is made now, make it private")
    cpu: bool = option(False, help="train on the CPU even where there is an accelerator")

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "output_dir", self.output_dir != "", "a folder")
        require(self, "seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        for name in ("gradient_accumulation_steps", "log_every", "eval_every", "keep_checkpoints"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "save_every", self.save_every is None or self.save_every >= 1, "at least 1, or none")
        require(self, "resume", self.resume != "", "`auto`, the folder of a checkpoint, or none")
        if self.resume is not None and self.overwrite:
            raise ValueError(f"resume={self.resume!r} contradicts overwrite=True; leave one of them out")
        if self.hub_model_id is not None and not self.push_to_hub:
            raise ValueError(f"hub_model_id={self.hub_model_id!r}: nothing goes there without push_to_hub; add it")
        if self.push_to_hub:
            self._check_repository()
        networks = self.evaluated_networks
        known = bool(networks) and len(set(networks)) == len(networks) and set(networks) <= {"student", "teacher"}
        require(self, "evaluated_networks", known, "one or both of student, teacher")

    def _check_repository(self) -> None:
        try:
            validate_repo_id(self.repository)
        except ValueError as error:
            raise ValueError(
                f"hub_model_id={self.hub_model_id!r}: {self.repository!r} is no name of a repository ({error}); give "
                "one, as NAME or OWNER/NAME"
            ) from error

    @property
    def repository(self) -> str:
        """Name on the Hub of what `push_to_hub` uploads."""
        return self.hub_model_id or Path(self.output_dir).resolve().name


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What is done about steps that are not finite and about a teacher that unlearns.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    max_skipped_steps: int = option(
        10, help="steps in a row that may be skipped since a loss or gradient is not finite, before the run ends"
    )
    on_collapse: Literal["roll_back", "supervised", "warn"] = option(
        "roll_back",
        help="when the teacher unlearns: go back to the checkpoint of the best evaluation, and the second time on "
        "without unlabeled images; or on without them at once; or only say so",
    )
    collapse_ap: float = option(
        0.5, help="the teacher has collapsed when its AP falls below this share of its best in the stage; 0 = never"
    )
    collapse_pseudo_labels: float = option(
        0.1, help="likewise when images have less than this share of the most pseudo-labels in the stage; 0 = never"
    )

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "max_skipped_steps", self.max_skipped_steps >= 0, "at least 0")
        for name in ("collapse_ap", "collapse_pseudo_labels"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0, below 1")
