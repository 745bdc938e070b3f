"""How often a step makes the host wait for the device."""

import warnings

import pytest
import torch
from small_runs import ANYTHING, build, configure, detector, source_of

pytestmark = pytest.mark.gpu

# One transfer each: detections of the teacher, costs for mining, matching on labeled and on unlabeled images; and one
# look each at the loss and at the norm of the gradients.
MOST_WAITS = {"one_to_one": 6, "one_to_many": 4}


@pytest.mark.parametrize("stage", MOST_WAITS)
def test_a_step_waits_only_where_the_host_decides(digits, tmp_path, stage: str) -> None:
    share = 1.0 if stage == "one_to_many" else 0.0
    config = configure(
        tmp_path,
        schedule={"num_steps": 8, "burn_in_steps": 0, "one_to_many_fraction": share},
        pseudo_labels=ANYTHING,
        run={"cpu": False, "log_every": 8},
    )
    source = source_of(digits, 8)
    trainer = build(config, detector(), labeled=source, unlabeled=source)
    batches = [trainer._next_batch() for _ in range(4)]
    for step, batch in enumerate(batches[:2]):
        trainer.make_step(step, [batch])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            trainer.make_step(2, [batches[2]])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [str(wait.message) for wait in waits if "synchronizing" in str(wait.message)]
    assert len(told) <= MOST_WAITS[stage], told
