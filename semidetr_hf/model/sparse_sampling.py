"""Deformable attention on the CPU: sampling as a product with a sparse matrix.

Row n of the matrix is one query and head, column s one token and head; the entries of a row are the four corners of
each of its sampling points, bilinear share times attention weight. With table V (a row for every token and head) and
matrix A the output is A V, the gradient of V is A^T G and that of the entries is G V^T, taken at the entries alone.
The matrix is built anew in the backward pass, in blocks that fit into the cache; only the inputs are kept for it.

The three products are those of libraries: a weighted `embedding_bag`, scipy's product with a matrix stored by columns
(one pass over the entries, where torch would sort them first), and `sampled_addmm`. Each adds in a fixed order, so two
runs give the same bits.

Source: Deformable DETR (arXiv 2010.04159), section 4.1, for what is computed.

Legend: B images, S tokens of all levels, Q queries, H heads, E channels of one head, L levels, P points, N = B * Q * H
bags (matrix rows), K = L * P points of one bag.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bags handled at once. Temporaries then stay in the cache, and small enough for the allocator to use them again:
# with twice as many a block takes four times as long (8 heads, 16 points).
BLOCK_BAGS = 8192

# Torch warns once per process that sparse tensors are in beta. Here, where nothing else runs: filters belong to all
# threads, and each change of them makes Python repeat other warnings.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), dtype=torch.float32, device="cpu", check_invariants=False)


@dataclass
class _Corners:
    """The corners of all sampling points of a block; index 0 is the left or upper one, 1 the right or lower one."""

    rows: Tensor  # (N, 2, 2, K) int32 row of the table, second dimension y, third x; any row where there is none
    shares: Tensor  # (N, 2, 2, K) bilinear share of a column (dimension 1: 0) or line (1); 0 where there is none
    inside: Tensor  # (N, 2, 2, K) 1.0 where the column or line exists
    sizes: Tensor  # (2, K) width and height of the level of each point

    def entries(self, weights: Tensor) -> Tensor:
        """Return the entries of the matrix, (N, 2, 2, K); weights are (N, K)."""
        x, y = self.shares.unbind(1)
        return (y * weights[:, None])[:, :, None] * x[:, None]


def _find_corners(locations: Tensor, spatial_shapes: list[tuple[int, int]], num_tokens: int) -> _Corners:
    """Locate the corners of (B, Q, H, L, P, 2) locations in a table with rows in the order (image, token, head)."""
    images, queries, heads, _, points, _ = locations.shape
    shapes = torch.tensor(spatial_shapes, dtype=torch.int32)
    ends = shapes.prod(-1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    starts = (ends - shapes.prod(-1, dtype=torch.int32)).repeat_interleave(points)  # (K,)
    sizes = shapes.flip(-1).repeat_interleave(points, 0).T.contiguous()  # (2, K): widths, heights

    # Loops over memory are fast where neighbours are treated alike: x and y apart, all points of a bag together.
    position = locations.reshape(images * queries * heads, -1, 2).transpose(1, 2)  # (N, 2, K)
    position = position.clone(memory_format=torch.contiguous_format).mul_(sizes).sub_(0.5)
    # Far outside, everything is zero anyway: bounds keep the integers small.
    position = torch.minimum(position.clamp_(min=-2), sizes + 1)
    low = position.floor()
    part = position.sub_(low)
    low = low.int()
    corner = torch.stack([low, low + 1], dim=2)  # (N, 2, 2, K)
    # Of whole numbers: a location that is not a number must not point outside the table. Its share stays NaN.
    bounded = corner.clamp(torch.zeros_like(sizes)[:, None], (sizes - 1)[:, None])
    inside = (bounded == corner).to(part.dtype)
    shares = torch.stack([1 - part, part], dim=2).mul_(inside)

    first = torch.arange(images, dtype=torch.int32)[:, None, None] * (num_tokens * heads)
    first = (first + torch.arange(heads, dtype=torch.int32)).expand(images, queries, heads).reshape(-1, 1, 1)
    columns = bounded[:, 0].mul_(heads)
    lines = bounded[:, 1].mul_(sizes[0]).add_(starts).mul_(heads).add_(first)
    return _Corners(rows=lines[:, :, None] + columns[:, None], shares=shares, inside=inside, sizes=sizes)


def _at_entries(corners: _Corners, grad_output: Tensor, table: Tensor) -> Tensor:
    """Return the product of (N, E) gradients and the transposed table at the entries of the matrix, (N, 2, 2, K)."""
    rows = corners.rows.view(len(grad_output), -1)
    starts = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=torch.int32)
    pattern = torch.sparse_csr_tensor(
        starts,
        rows.flatten(),
        grad_output.new_zeros(rows.numel()),
        size=(len(rows), len(table)),
        check_invariants=False,  # they ask for ascending columns, which the product does not need
    )
    return torch.sparse.sampled_addmm(pattern, grad_output, table.T, beta=0.0).values().view(corners.rows.shape)


def _point_gradients(corners: _Corners, weights: Tensor, per_entry: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of (N, K) weights and of locations, (N, K, 2), from those of the entries."""
    x, y = corners.shares.unbind(1)  # (N, 2, K)
    x_inside, y_inside = corners.inside.unbind(1)
    of_columns = per_entry[:, 0] * y[:, :1] + per_entry[:, 1] * y[:, 1:]  # (N, 2, K)
    of_lines = per_entry[:, :, 0] * x[:, :1] + per_entry[:, :, 1] * x[:, 1:]
    grad_weights = of_columns[:, 0] * x[:, 0] + of_columns[:, 1] * x[:, 1]
    grad_x = of_columns[:, 1] * x_inside[:, 1] - of_columns[:, 0] * x_inside[:, 0]
    grad_y = of_lines[:, 1] * y_inside[:, 1] - of_lines[:, 0] * y_inside[:, 0]
    grad_locations = torch.stack([grad_x, grad_y], dim=1).mul_(corners.sizes).mul_(weights[:, None])
    return grad_weights, grad_locations.transpose(1, 2)


def _blocks(images: int, queries: int, heads: int) -> list[tuple[slice, list[slice]]]:
    """Cut B images and Q queries into blocks of about BLOCK_BAGS bags; small images share a block."""
    queries_per_block = max(1, BLOCK_BAGS // heads)
    images_per_block = max(1, queries_per_block // max(queries, 1))
    parts = [slice(q, q + queries_per_block) for q in range(0, queries, queries_per_block)]
    return [(slice(b, b + images_per_block), parts) for b in range(0, images, images_per_block)]


def sample(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of samples, (B, Q, H * E), without gradients; see `sample_sparsely`."""
    images, tokens, heads, width = value.shape
    queries = locations.shape[1]
    output = value.new_empty(images, queries, heads * width)
    for image, parts in _blocks(images, queries, heads):
        table = value[image].reshape(-1, width)
        for part in parts:
            corners = _find_corners(locations[image, part], spatial_shapes, tokens)
            block = weights[image, part]
            entries = corners.entries(block.reshape(len(corners.rows), -1))
            bags = (len(entries), entries[0].numel())
            sums = F.embedding_bag(corners.rows.view(bags), table, per_sample_weights=entries.view(bags), mode="sum")
            output[image, part] = sums.view(*block.shape[:2], heads * width)
    return output


def sample_backward(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    *,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights from that of the output of `sample`."""
    images, tokens, heads, width = value.shape
    grad_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    for image, parts in _blocks(images, locations.shape[1], heads):
        table = value[image].reshape(-1, width)
        gradients = grad_output[image].reshape(-1, width)  # a row for every bag of these images
        rows = torch.empty(len(gradients), 4 * weights.shape[3] * weights.shape[4], dtype=torch.int32)
        entries = torch.empty_like(rows, dtype=torch.float32)
        filled = 0
        for part in parts:
            block, shape = weights[image, part], locations[image, part].shape
            bag_weights = block.reshape(-1, shape[3] * shape[4])
            corners = _find_corners(locations[image, part], spatial_shapes, tokens)
            per_entry = _at_entries(corners, grad_output[image, part].reshape(-1, width), table)
            of_weights, of_locations = _point_gradients(corners, bag_weights, per_entry)
            grad_weights[image, part] = of_weights.view(block.shape)
            grad_locations[image, part] = of_locations.reshape(shape)
            bags = slice(filled, filled + len(bag_weights))
            rows[bags] = corners.rows.flatten(1)
            entries[bags] = corners.entries(bag_weights).flatten(1)
            filled = bags.stop
        grad_table = _transposed_product(rows, entries, gradients, num_rows=len(table))
        grad_value[image] = grad_table.view(-1, tokens, heads, width)
    return grad_value, grad_locations, grad_weights


def _transposed_product(rows: Tensor, entries: Tensor, gradients: Tensor, *, num_rows: int) -> Tensor:
    """Return A^T G, (num_rows, E); `rows` and `entries` are (N, 4 * K)."""
    ends = torch.arange(0, rows.numel() + 1, max(rows.shape[1], 1), dtype=torch.int32)
    matrix = scipy.sparse.csc_array(
        (entries.view(-1).numpy(), rows.view(-1).numpy(), ends.numpy()), shape=(num_rows, len(rows))
    )
    return torch.from_numpy(matrix @ gradients.numpy())


class _SparseSampling(torch.autograd.Function):
    """`sample` with its gradients, but not theirs; keeps only its inputs for the backward pass."""

    @staticmethod
    def forward(ctx, value, spatial_shapes, locations, weights):
        ctx.save_for_backward(value, locations, weights)
        ctx.spatial_shapes = spatial_shapes
        return sample(value, spatial_shapes, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        value, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = sample_backward(
            value, ctx.spatial_shapes, locations=locations, weights=weights, grad_output=grad_output
        )
        return grad_value, None, grad_locations, grad_weights


# The same for torch.compile, which takes an operator as it is and does not look inside. Operators know flat lists of
# numbers only. A module that is loaded twice, as remote code beside the package, must not share their names.
_NAMESPACE = re.sub(r"\W", "_", __name__)


@torch.library.custom_op(f"{_NAMESPACE}::sample", mutates_args=(), device_types="cpu")
def _sample_operator(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return sample(value, _pairs(sizes), locations, weights)


@torch.library.custom_op(f"{_NAMESPACE}::sample_backward", mutates_args=(), device_types="cpu")
def _backward_operator(
    value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return sample_backward(value, _pairs(sizes), locations=locations, weights=weights, grad_output=grad_output)


@_sample_operator.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_backward_operator.register_fake
def _(
    value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _keep_inputs(ctx, inputs, output) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _operator_backward(ctx, grad_output):
    value, locations, weights = ctx.saved_tensors
    grads = _backward_operator(value, ctx.sizes, locations, weights, grad_output)
    return grads[0], None, grads[1], grads[2]


_sample_operator.register_autograd(_operator_backward, setup_context=_keep_inputs)


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def sample_sparsely(
    value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample on the CPU, with gradients and under torch.compile.

    Args:
        value: (B, S, H, E) float32, on the CPU like all others.
        spatial_shapes: (height, width) of each level.
        locations: (B, Q, H, L, P, 2) float32, (x, y) as fractions of a level.
        weights: (B, Q, H, L, P) float32.

    Returns:
        (B, Q, H * E) float32.
    """
    if torch.compiler.is_compiling():
        return _sample_operator(value, [size for shape in spatial_shapes for size in shape], locations, weights)
    return _SparseSampling.apply(value, spatial_shapes, locations, weights)
