"""Weights, gradients or optimizer spread over the processes must end where whole ones do."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from small_runs import configure
from tiny_step import EVERYTHING, NOTHING, WEIGHTS, build, give_detections, semi_batch, total
from torch.distributed.fsdp import MixedPrecisionPolicy

from semidetr_hf import SemiDetrForObjectDetection
from semidetr_hf.ssod.query_consistency import QueryProjector
from semidetr_hf.structures import Stage
from semidetr_hf.training.sharding import set_up_sharding

FILES = Path(__file__).resolve().parents[2] / "examples" / "accelerate"
# A burn-in gives the projector no gradient. ZeRO keeps one count of steps for all weights, so that those which start
# late differ for good; without a consistency loss there are none.
CONSISTENCY_WEIGHTS = {"FSDP": 1.0, "DEEPSPEED": 0.0}


def launch(kind: str, weight: float, digits: Any, folder: Path) -> list[dict[str, Any]]:
    """Return the report of both processes, with the weights they ended with."""
    folder.mkdir()
    program = Path(__file__).with_name("sharded_processes.py")
    paths = os.pathsep.join(map(str, program.parents[1:3]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    command += [kind, str(weight), str(digits.train_json), str(digits.val_json), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        json.loads((folder / f"process{rank}.json").read_text()) | torch.load(folder / f"weights{rank}.pt")
        for rank in (0, 1)
    ]


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_sharded_run_ends_with_the_weights_of_a_whole_one(digits, tmp_path, kind: str) -> None:
    """Burn-in and both stages; the second process has no pseudo-label at all."""
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    whole = launch("DDP", CONSISTENCY_WEIGHTS[kind], digits, tmp_path / "ddp")
    sharded = launch(kind, CONSISTENCY_WEIGHTS[kind], digits, tmp_path / "sharded")
    for report in sharded:
        assert report["kind"] == kind
        assert report["saved"]
        assert report["survives"]
        assert report["norms"] == pytest.approx(whole[0]["norms"], rel=1e-4)
        for network in ("objective", "teacher"):
            # A wrong gradient moves a weight by the learning rate, 1e-4, in every step.
            torch.testing.assert_close(report[network], whole[0][network], rtol=1e-4, atol=2e-5)
            assert all(torch.equal(report[network][name], sharded[0][network][name]) for name in report[network])
    if kind == "FSDP":
        # The objective, two encoder and two decoder layers; every process has half of the weights.
        assert [report["num_sharded_modules"] for report in sharded] == [5, 5]
        assert sum(report["num_own_weights"] for report in sharded) == whole[0]["num_weights"]
        assert sharded[0]["num_own_weights"] < 0.6 * whole[0]["num_weights"]


# ---- Gradients


@pytest.mark.parametrize("stage", Stage)
def test_the_order_of_gradients_does_not_depend_on_the_images(stage: Stage) -> None:
    """DeepSpeed averages the first gradient of one process with the first of the others, and so on."""

    def order(*, boxes: bool, pseudo_labels: bool) -> list[str]:
        objective, teacher = build(EVERYTHING if pseudo_labels else NOTHING)
        batch = semi_batch()
        if not boxes:
            targets = [{name: value[:0] for name, value in target.items()} for target in batch.labeled.targets]
            batch = replace(batch, labeled=replace(batch.labeled, targets=targets))
        if not pseudo_labels:
            give_detections(teacher, ([], []), ([], []))
        names: list[str] = []
        for name, parameter in objective.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: names.append(name))
        total(objective, objective(batch, teacher, stage, WEIGHTS)).backward()
        return names

    expected = order(boxes=True, pseudo_labels=True)
    assert {name for name, _ in build()[0].named_parameters()} == set(expected)
    for boxes, pseudo_labels in ((True, False), (False, True), (False, False)):
        assert order(boxes=boxes, pseudo_labels=pseudo_labels) == expected


def test_a_projector_without_rois_has_gradients_of_zero_and_learns_no_statistics() -> None:
    projector = QueryProjector(4, hidden=8, roi_size=3).train()
    before = {name: buffer.clone() for name, buffer in projector.named_buffers()}
    projector(torch.zeros(0, 4, 3, 3)).sum().backward()
    for parameter in projector.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(torch.equal(buffer, before[name]) for name, buffer in projector.named_buffers())


# ---- What is refused


def accelerator(kind: DistributedType, **state: Any) -> Any:
    plugins = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}
    fsdp = SimpleNamespace(**(plugins | state.pop("fsdp", {})))
    deepspeed = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": state.pop("zero", 2)}})
    return SimpleNamespace(
        distributed_type=kind,
        device=torch.device("cpu"),
        num_processes=1,
        state=SimpleNamespace(fsdp_plugin=fsdp, deepspeed_plugin=deepspeed),
    )


@pytest.mark.parametrize(
    "setting", [{"fsdp_version": 1}, {"cpu_ram_efficient_loading": True}, {"activation_checkpointing": True}]
)
def test_settings_of_fsdp_that_do_not_work_are_named(setting: dict[str, Any], tmp_path) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"{name}: \S+ does not work here"):
        set_up_sharding(accelerator(DistributedType.FSDP, fsdp=setting), configure(tmp_path))


def test_fsdp_leaves_low_precision_to_autocast(tmp_path) -> None:
    fake = accelerator(DistributedType.FSDP, fsdp={"mixed_precision_policy": MixedPrecisionPolicy(torch.bfloat16)})
    set_up_sharding(fake, configure(tmp_path, run={"mixed_precision": "bf16"}))
    assert fake.state.fsdp_plugin.mixed_precision_policy.param_dtype is None


def test_fsdp_where_accelerate_would_not_shard_is_an_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, but Accelerate does not shard on 'cpu' with 1 process"):
        set_up_sharding(accelerator(DistributedType.NO), configure(tmp_path))


def test_processes_that_do_not_know_of_each_other_are_an_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but Accelerate sees 1 process.*--cpu true"):
        set_up_sharding(accelerator(DistributedType.NO), configure(tmp_path))


def test_deepspeed_takes_its_numbers_from_the_configuration_of_the_run(tmp_path) -> None:
    fake = accelerator(DistributedType.DEEPSPEED)
    config = configure(tmp_path, data={"labeled_batch_size": 3}, optimizer={"max_grad_norm": 0.7})
    set_up_sharding(fake, config)
    settings = fake.state.deepspeed_plugin.deepspeed_config
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_clipping"]) == (3, 0.7)


def test_deepspeed_refuses_what_it_cannot_do(tmp_path) -> None:
    with pytest.raises(ValueError, match="zero_stage: 3 does not work here"):
        set_up_sharding(accelerator(DistributedType.DEEPSPEED, zero=3), configure(tmp_path))
    config = configure(tmp_path, run={"mixed_precision": "bf16"})
    with pytest.raises(ValueError, match="mixed_precision='bf16': DeepSpeed"):
        set_up_sharding(accelerator(DistributedType.DEEPSPEED), config)


# ---- The files for `accelerate launch`


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2", "two_cpus"])
def test_accelerate_reads_the_example_files(name: str) -> None:
    config = load_config_from_file(str(FILES / f"{name}.yaml"))
    assert config.num_processes == 2
    # The trainer gives its own, `run.mixed_precision`.
    assert config.mixed_precision == "no"


def test_the_fsdp_file_wraps_the_layers_that_there_are() -> None:
    settings = load_config_from_file(str(FILES / "fsdp2.yaml")).fsdp_config
    wrapped = settings["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert wrapped == list(SemiDetrForObjectDetection._no_split_modules)
    assert settings["fsdp_version"] == 2


@pytest.mark.multiprocess
def test_the_file_for_two_cpus_starts_two_processes_that_know_of_each_other(tmp_path) -> None:
    program = tmp_path / "say.py"
    program.write_text(
        "from accelerate import Accelerator\n"
        "state = Accelerator(cpu=True).state\n"
        f"open(f'{tmp_path}/{{state.process_index}}', 'w').write(f'{{state.num_processes}} {{state.device.type}}')\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FILES / "two_cpus.yaml"), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 cpu", "2 cpu"]
