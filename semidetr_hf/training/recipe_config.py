"""What is done around a semi-supervised run so that it does not end below a supervised one."""

from dataclasses import dataclass

from semidetr_hf.training.config_checks import check_types, option, require


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The supervised baseline of a run, when a run may end early, and the batch its settings are meant for.

    `train_with_baseline` acts on all of it, `SemiDetrTrainer` on `early_stopping_patience` alone.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    baseline: str = option(
        "train",
        help="supervised run to compare with: `train` one of the same labels and steps in output_dir/supervised, or "
        "reuse the equal one that is there; `none`; or the folder of one",
    )
    warm_start: bool = option(
        False, help="start from the best network of the baseline, and leave out the burn-in in return"
    )
    early_stopping_patience: int | None = option(
        None, help="end the run after so many evaluations without a better AP in its last stage (default: never)"
    )
    scale_with_batch: int | None = option(
        None,
        help="images per step, of all processes, for which learning_rate and ema_momentum are meant; both follow the "
        "number there really is (default: they are taken as given)",
    )
    estimate: bool = option(True, help="measure a few steps of each kind before the run, to tell its time and memory")

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "baseline", self.baseline != "", "`train`, `none`, or the folder of a supervised run")
        for name in ("early_stopping_patience", "scale_with_batch"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or none")
        if self.warm_start and self.baseline == "none":
            raise ValueError("warm_start=True starts from the baseline, but baseline='none'; change one of them")
