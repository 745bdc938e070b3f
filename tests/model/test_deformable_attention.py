"""Deformable attention against hand-worked and recorded numbers; its ways of sampling against each other."""

import pytest
import torch
from recorded import load_recorded
from tiny import tiny_config
from torch.testing import assert_close

from semidetr_hf.model import deformable_attention, sparse_sampling
from semidetr_hf.model.deformable_attention import (
    choose_sampling,
    multi_scale_deformable_attention,
    sample_by_deformops,
    sample_by_grid,
)
from semidetr_hf.model.modeling_semidetr import SemiDetrDeformableAttention, sampling_grid
from semidetr_hf.model.sparse_sampling import sample_sparsely

SHAPES = [(6, 9), (3, 5), (2, 3), (1, 2)]  # 54 + 15 + 6 + 2 = 77 tokens


def random_inputs(batch=2, queries=7, heads=2, width=4, shapes=SHAPES, seed=0):
    """Locations reach from -0.3 to 1.3, so that many points and corners lie outside."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * columns for height, columns in shapes)
    value = torch.randn(batch, tokens, heads, width, generator=generator)
    locations = torch.rand(batch, queries, heads, len(shapes), 3, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, len(shapes), 3, generator=generator)
    return value, locations, weights / weights.sum((-1, -2), keepdim=True)


def attend(value, locations, weights, shapes=SHAPES):
    return multi_scale_deformable_attention(value, shapes, sampling_locations=locations, attention_weights=weights)


def gradients(function, *tensors):
    """Return the output and the gradients of a weighted sum of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    return output.detach(), torch.autograd.grad((output * weight).sum(), leaves)


def test_by_hand():
    # A level of 1 x 2 cells with values 10 and 20; centres at x = 1/4 and 3/4.
    value = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    x = torch.tensor([0.25, 0.5, 0.75, 0.0, 2.0])
    locations = torch.stack([x, torch.full_like(x, 0.5)], dim=-1).view(1, 5, 1, 1, 1, 2)
    output = attend(value, locations, torch.ones(1, 5, 1, 1, 1), [(1, 2)])
    # Both centres, halfway, the left border (half of the cell lies outside, which is 0) and far outside.
    assert_close(output.view(-1), torch.tensor([10.0, 15.0, 20.0, 5.0, 0.0]))


@pytest.mark.parametrize("case", [0, 1])
def test_recorded_core(case):
    recorded = load_recorded("msda.npz")["core"][case]
    shapes = [tuple(shape) for shape in recorded["spatial_shapes"].tolist()]
    names = ("value", "sampling_locations", "attention_weights")
    leaves = [recorded[name].clone().requires_grad_() for name in names]
    output = attend(*leaves, shapes)
    assert_close(output, recorded["output"], rtol=1e-4, atol=5e-5)
    output.backward(recorded["grad_output"])
    assert_close(leaves[0].grad, recorded["grad_value"], rtol=1e-4, atol=5e-5)
    assert_close(leaves[2].grad, recorded["grad_attention_weights"], rtol=1e-4, atol=5e-5)
    # Query 0 lies on cell borders, where the gradient jumps.
    expected = recorded["grad_sampling_locations_from_query1"]
    assert_close(leaves[1].grad[:, 1:], expected, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize(
    ("points", "masked", "expected"), [(2, True, "output_2d"), (4, True, "output_4d"), (4, False, "output_4d_no_mask")]
)
def test_recorded_module(points, masked, expected):
    recorded = load_recorded("msda.npz")["module"][0]
    config = tiny_config(d_model=32)
    module = SemiDetrDeformableAttention(config, int(recorded["num_heads"]), int(recorded["num_points"]))
    weights = {}
    for name, parts in recorded["state_dict"].items():  # keys with a dot are not split by the reader
        weights[name] = parts
    module.load_state_dict(weights)
    padding = recorded["padding_mask"] if masked else torch.zeros_like(recorded["padding_mask"])
    output, _ = module(
        recorded["query"],
        memory=recorded["source"],
        token_mask=~padding,
        reference_points=recorded[f"reference_points_{points}d"],
        spatial_shapes=[tuple(shape) for shape in recorded["spatial_shapes"].tolist()],
    )
    assert_close(output, recorded[expected], rtol=1e-4, atol=5e-5)


def test_recorded_initial_grid():
    expected = load_recorded("msda.npz")["init_sampling_offsets_bias_heads8_levels4_points4"]
    assert_close(sampling_grid(8, 4, 4).flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [8192, 16, 6])  # all at once, one image per block, several blocks per image
@pytest.mark.parametrize("batch", [1, 2])
def test_sparse_and_grid_sampling_agree(monkeypatch, block, batch):
    monkeypatch.setattr(sparse_sampling, "BLOCK_BAGS", block)
    inputs = random_inputs(batch)
    output, grads = gradients(attend, *inputs)
    by_grid, grads_by_grid = gradients(lambda value, x, w: sample_by_grid(value, SHAPES, x, w), *inputs)
    assert_close(output, by_grid, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(grads, grads_by_grid, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_points_far_outside_have_no_effect():
    value, locations, weights = random_inputs()
    for distance in (-1e6, -2.0, 3.0, 1e6):
        output, grads = gradients(attend, value, torch.full_like(locations, distance), weights)
        assert not output.any()
        assert not any(grad.any() for grad in grads)


def test_backward_is_deterministic():
    inputs = random_inputs(queries=50)
    _, first = gradients(attend, *inputs)
    _, second = gradients(attend, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batch_of_two_equals_two_of_one():
    value, locations, weights = random_inputs()
    both = attend(value, locations, weights)
    for i in range(2):
        part = slice(i, i + 1)
        assert_close(both[part], attend(value[part], locations[part], weights[part]))


def test_one_point_on_one_level_leaves_the_inputs_alone():
    """Then swapping dimensions moves nothing in memory, and what looks like a copy is none."""
    value = torch.randn(1, 2, 1, 1)
    locations, weights = torch.rand(1, 3, 1, 1, 1, 2), torch.rand(1, 3, 1, 1, 1)
    before = locations.clone()
    attend(value, locations, weights, [(1, 2)])
    assert torch.equal(locations, before)


def test_output_is_linear_in_the_value():
    value, locations, weights = random_inputs()
    other = torch.randn_like(value)
    together = attend(value + 2 * other, locations, weights)
    assert_close(
        together, attend(value, locations, weights) + 2 * attend(other, locations, weights), rtol=1e-4, atol=1e-5
    )


def test_bf16_value_gives_bf16():
    value, locations, weights = random_inputs()
    value.requires_grad_()
    low = attend(value.bfloat16(), locations, weights)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), attend(value, locations, weights), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exported_graphs_sample_in_float32(monkeypatch, dtype):
    """Only the value and the output are rounded, not where it is read: that would move points on wide levels."""
    shapes = [(100, 160), (50, 80)]
    value, locations, weights = random_inputs(shapes=shapes)
    value = value.to(dtype)
    expected = sample_by_grid(value.float(), shapes, locations, weights)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    output = attend(value, locations, weights, shapes)
    assert output.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    rounded = sample_by_grid(value.float(), shapes, locations.to(dtype).float(), weights)
    assert (rounded - expected).abs().max() > 10 * (output.float() - expected).abs().max()


def test_exported_graphs_hold_operations_of_torch_only():
    class Attention(torch.nn.Module):
        def forward(self, value, locations, weights):
            return attend(value, locations, weights)

    inputs = random_inputs()
    exported = torch.export.export(Attention(), inputs)
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum(call.startswith("aten.grid_sampler") for call in calls) == len(SHAPES)
    assert all(call.startswith("aten.") or "operator" in call for call in calls)
    assert_close(exported.module()(*inputs), attend(*inputs), rtol=1e-4, atol=1e-5)


def test_compiled_graphs_are_whole_and_give_the_same_bits():
    inputs = random_inputs()
    expected, expected_grads = gradients(attend, *inputs)
    # The graph is captured, differentiated and split as for any compiler, and then run by torch as it stands.
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    output, grads = gradients(compiled, *inputs)
    assert torch.equal(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def test_the_operator_for_compiled_graphs_is_sound():
    value, locations, weights = (tensor.requires_grad_() for tensor in random_inputs())
    sizes = [size for shape in SHAPES for size in shape]
    arguments = (value, sizes, locations, weights)
    torch.library.opcheck(sparse_sampling._sample_operator, arguments)


def test_locations_that_are_not_numbers_give_no_numbers():
    """They must not read outside the table: that would be memory of something else."""
    value, locations, weights = random_inputs()
    locations[0, 3, 1, 2, 0, 0] = float("nan")
    locations[1, 2, 0, 1, 1, 1] = float("inf")
    output, grads = gradients(attend, value, locations, weights)
    bad = output.isnan().view(2, 7, 2, 4).any(-1).nonzero().tolist()
    assert bad == [[0, 3, 1]]  # of the infinite one nothing is seen: it is far outside
    assert grads[1][0, 3, 1, 2, 0].isnan().any() or grads[2][0, 3, 1].isnan().any()


def test_devices_sample_in_their_ways(monkeypatch):
    assert choose_sampling(torch.device("cpu")) is sample_sparsely
    assert choose_sampling(torch.device("meta")) is sample_by_grid
    hints = []
    monkeypatch.setattr(deformable_attention.logger, "warning_once", hints.append)
    assert choose_sampling(torch.device("cuda")) is sample_by_grid
    assert len(hints) == 1 and "semidetr-hf[gpu]" in hints[0]


def test_deformops_is_called_as_it_wants(monkeypatch):
    """What it is given, by a stand-in with its signature, for machines where it cannot be installed."""
    seen = {}

    def stand_in(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        seen.update(shapes=spatial_shapes.tolist(), starts=level_start_index.tolist())
        shapes = [tuple(shape) for shape in spatial_shapes.tolist()]
        return sample_by_grid(value, shapes, sampling_locations, attention_weights)

    monkeypatch.setattr(deformable_attention, "deformops_attention", stand_in)
    value, locations, weights = random_inputs()
    output = sample_by_deformops(value, SHAPES, locations, weights)
    assert seen == {"shapes": [list(shape) for shape in SHAPES], "starts": [0, 54, 69, 75]}
    assert_close(output, attend(value, locations, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(deformable_attention.deformops_attention is None, reason="deformops is not installed")
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)  # on the CPU it runs its plain version
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=["float32", "bfloat16"]
)
def test_deformops_agrees(device, dtype, tolerance):
    # Kernels want 8 channels and more, and 4 or 8 points.
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, 77, 2, 32, generator=generator).to(dtype)
    locations = torch.rand(2, 7, 2, 4, 4, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(2, 7, 2, 16, generator=generator).softmax(-1).view(2, 7, 2, 4, 4)
    expected, expected_grads = gradients(attend, value.float(), locations, weights)
    output, grads = gradients(
        lambda *inputs: sample_by_deformops(inputs[0].to(dtype).float(), SHAPES, *inputs[1:]),
        *(tensor.to(device) for tensor in (value.float(), locations, weights)),
    )
    assert_close(output.cpu(), expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_no_queries():
    value, locations, weights = random_inputs()
    value.requires_grad_()
    output = attend(value, locations[:, :0], weights[:, :0])
    assert output.shape == (2, 0, 8)
    output.sum().backward()
    assert not value.grad.any()


def test_wrong_levels_are_named():
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match=r"levels \[\(6, 9\)\] do not add up to the 77 tokens"):
        attend(value, locations, weights, [(6, 9)])
