"""Run by test_sharded.py under `torchrun`: six steps with weights that are whole, or sharded in the way asked for.

The teacher of the second process finds nothing, so that this process has no pseudo-label in any step.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from small_runs import ANYTHING, PLAIN, SIZE, configure, detector
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForObjectDetection

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.ssod.teacher import whole_tensor
from semidetr_hf.structures import PseudoLabels, View
from semidetr_hf.training.trainer import SemiDetrTrainer


def use_on_cpus(kind: DistributedType) -> None:
    """Make Accelerate shard on CPUs, too: by itself it does so on GPUs and the like only."""
    if kind == DistributedType.FSDP:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["SemiDetrEncoderLayer", "SemiDetrDecoderLayer"],
            reshard_after_forward=True,
        )
        state = Accelerator(cpu=True, fsdp_plugin=plugin).state
        state.fsdp_plugin = plugin
    else:
        state = Accelerator(cpu=True).state
        importlib.import_module("deepspeed").init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        state.deepspeed_plugins = DeepSpeedPlugin(zero_stage=2)
        state.deepspeed_plugins.select(_from_accelerator_state=True)
    PartialState._shared_state["distributed_type"] = state.distributed_type = kind


def find_nothing(_encoded: object, view: View, **_rules: float) -> list[PseudoLabels]:
    nothing = PseudoLabels(
        boxes_xyxy=torch.zeros(0, 4), class_labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0)
    )
    return [nothing] * len(view)


def whole(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole_tensor(tensor).detach().clone() for name, tensor in network.state_dict().items()}


def survives_a_checkpoint(trainer: SemiDetrTrainer, folder: Path) -> bool:
    """Return whether Accelerate puts back the weights that it has saved."""
    objective = trainer.accelerator.unwrap_model(trainer.objective)
    before = whole(objective)
    trainer.accelerator.save_state(str(folder))
    trainer.accelerator.wait_for_everyone()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.zero_()
    trainer.accelerator.load_state(str(folder))
    after = whole(objective)
    return all(torch.equal(before[name], after[name]) for name in before)


def main(kind: str, consistency_weight: float, data: list[str], folder: Path) -> None:
    if kind != "DDP":
        use_on_cpus(DistributedType(kind))
    config = configure(
        folder,
        optimizer={"learning_rate": 1e-4, "backbone_lr_factor": 1.0},
        schedule={"num_steps": 6, "burn_in_steps": 2, "one_to_many_steps": 4},
        consistency={"consistency_weight": consistency_weight},
        pseudo_labels=ANYTHING,
        run={"eval_every": 6},
    )
    train, val = map(CocoSource, data)
    processor = SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE})
    trainer = SemiDetrTrainer(config, detector(), processor, labeled=train, unlabeled=train, val=val, augment=PLAIN)
    accelerator = trainer.accelerator
    if accelerator.process_index == 1:
        trainer.teacher.detect = find_nothing  # type: ignore[method-assign,assignment]
    norms: list[float] = []
    step = trainer.train_step

    def watch() -> dict[str, float]:
        numbers = step()
        norms.append(float(numbers["gradient_norm"]))
        return numbers

    trainer.train_step = watch  # type: ignore[method-assign]
    trainer.train(another_follows=True)  # the checkpoint below needs the process group
    objective = accelerator.unwrap_model(trainer.objective)
    saved = AutoModelForObjectDetection.from_pretrained(folder / "out" / "student").state_dict()
    student = whole(trainer.student)
    report = {
        "kind": accelerator.distributed_type.value,
        "norms": norms,
        "num_sharded_modules": sum(isinstance(module, FSDPModule) for module in objective.modules()),
        "num_weights": sum(parameter.numel() for parameter in objective.parameters()),
        "num_own_weights": sum(getattr(p, "_local_tensor", p).numel() for p in objective.parameters()),
        "saved": all(torch.equal(saved[name], student[name]) for name in student),
        "survives": survives_a_checkpoint(trainer, folder / "state"),
    }
    networks = {"objective": whole(objective), "teacher": whole(trainer.teacher.detector)}
    torch.save(networks, folder / f"weights{accelerator.process_index}.pt")
    (folder / f"process{accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:5], Path(sys.argv[5]))
