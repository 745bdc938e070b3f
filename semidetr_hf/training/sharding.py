"""Runs whose weights, gradients or optimizer are spread over the processes: FSDP version 2, DeepSpeed ZeRO 1 and 2.

The teacher is whole on every process; only the student and the projector are sharded.
"""

import copy
import os
from collections.abc import Mapping

from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.ssod.teacher import whole_tensor
from semidetr_hf.training.config import TrainingConfig


def set_up_sharding(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Fit what Accelerate was told about FSDP or DeepSpeed to the run; call it before `prepare`.

    Raises:
        ValueError: if the student cannot be trained in the way asked for; names the setting.
    """
    kind = accelerator.distributed_type
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started != accelerator.num_processes:
        # As on a machine without GPUs: each process would make a run of its own, into the same folder.
        raise ValueError(
            f"WORLD_SIZE={started}, but Accelerate sees {accelerator.num_processes} process(es) on "
            f"{accelerator.device.type!r}; for several processes on CPUs add --cpu true"
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and kind != DistributedType.FSDP:
        # Accelerate would go on with whole copies and say nothing.
        raise ValueError(
            f"FSDP was asked for, but Accelerate does not shard on {accelerator.device.type!r} with "
            f"{accelerator.num_processes} process(es); start it by `accelerate launch` on GPUs, or leave FSDP out"
        )
    if kind == DistributedType.FSDP:
        _set_up_fsdp(accelerator)
    elif kind == DistributedType.DEEPSPEED:
        _set_up_deepspeed(accelerator, config)


def _set_up_fsdp(accelerator: Accelerator) -> None:
    plugin = accelerator.state.fsdp_plugin
    refused = {
        "fsdp_version: 1": plugin.fsdp_version != 2,
        "fsdp_cpu_ram_efficient_loading: true": plugin.cpu_ram_efficient_loading,
        "fsdp_activation_checkpointing: true": plugin.activation_checkpointing,
    }
    for setting, is_set in refused.items():
        if is_set:
            raise ValueError(f"{setting} does not work here; see examples/accelerate/fsdp2.yaml for what does")
    # Autocast chooses the number format of every operation. FSDP would cast all that enters a sharded module, boxes
    # and positions too.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def _set_up_deepspeed(accelerator: Accelerator, config: TrainingConfig) -> None:
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    stage = settings["zero_optimization"]["stage"]
    if stage == 3:
        raise ValueError("zero_stage: 3 does not work here, the teacher cannot read its weights; take 2, or FSDP")
    if config.run.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision={config.run.mixed_precision!r}: DeepSpeed would convert the weights themselves; "
            "take 'no', or FSDP"
        )
    settings["train_micro_batch_size_per_gpu"] = config.data.labeled_batch_size
    # DeepSpeed clips by itself.
    settings["gradient_clipping"] = config.optimizer.max_grad_norm


def load_whole(network: SemiDetrForObjectDetection, weights: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Give a network, sharded or not, the weights of a whole one.

    Args:
        network: receives them.
        weights: state dict of a whole network, the same on every process.
        optimizer: that of the network as Accelerate has prepared it.
    """
    set_model_state_dict(network, dict(weights), options=StateDictOptions(full_state_dict=True))
    # DeepSpeed's optimizer has a copy of the weights of its own, from which it would put back the old ones.
    refresh = getattr(getattr(optimizer, "optimizer", None), "refresh_fp32_params", None)
    if refresh is not None:
        refresh()


def whole_network(
    network: SemiDetrForObjectDetection, *, like: SemiDetrForObjectDetection
) -> SemiDetrForObjectDetection:
    """Return the network itself or, if FSDP has sharded it, a whole copy; then every process must call this.

    Args:
        network: unwrapped.
        like: a whole network of the same architecture, on the same device.
    """
    if not any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return network
    whole = copy.deepcopy(like)
    whole.load_state_dict({name: whole_tensor(tensor) for name, tensor in network.state_dict().items()})
    return whole
