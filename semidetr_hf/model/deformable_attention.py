"""Multi-scale deformable attention: every query samples a few points on every level of the feature pyramid.

`multi_scale_deformable_attention` is the one entry. On the CPU it reads the four corners of every sampling point as
one weighted `embedding_bag` and recomputes the corners in the backward pass; small images are trained with a dense
matrix instead, which needs no sorting there; elsewhere, and while a graph is being captured by torch.compile or
torch.export, it uses `grid_sample`. All give the same numbers (the tests compare them).

Source: Deformable DETR (arXiv 2010.04159), section 4.1.

Legend: B images, S tokens of all levels, Q queries, H heads, E channels of one head, L levels, P points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Queries (times images) handled at once: keeps the corner indices of a block within the cache, measured on 2 cores.
BLOCK_QUERIES = 2048
# Up to so many tokens, forward and backward together are faster with a dense matrix: 1.4 to 1.8 times at 190 tokens,
# 1.2 times at 340, but half as fast at 529 (4 heads, 4 or 8 images, one core). It grows with tokens times queries.
MAX_DENSE_TOKENS = 400


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    *,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the attention-weighted sum of bilinear samples.

    Convention: locations are (x, y) as fractions of a level, corners of the level at 0 and 1; outside is zero.

    Args:
        value: (B, S, H, E), the projected tokens, levels one after another, row by row.
        spatial_shapes: (height, width) of each of the L levels, their areas add up to S.
        sampling_locations: (B, Q, H, L, P, 2).
        attention_weights: (B, Q, H, L, P), adding up to 1 over L and P.

    Returns:
        (B, Q, H * E) in the dtype of `value`.

    Raises:
        ValueError: if the areas do not add up to S.
    """
    if sum(height * width for height, width in spatial_shapes) != value.shape[1]:
        raise ValueError(f"levels {spatial_shapes} do not add up to the {value.shape[1]} tokens of the value")
    sample: Callable[..., Tensor] = sample_by_grid
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        trains = torch.is_grad_enabled() and (value.requires_grad or sampling_locations.requires_grad)
        sample = sample_densely if trains and value.shape[1] <= MAX_DENSE_TOKENS else _EmbeddingBagSampling.apply
    output = sample(value.float(), spatial_shapes, sampling_locations.float(), attention_weights.float())
    return output.to(value.dtype)


def sample_by_grid(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample level by level with `grid_sample`; arguments as in `multi_scale_deformable_attention`, all float32.

    In bfloat16 a location on a level 100 cells wide would be off by up to a fifth of a cell.
    """
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B * H, Q, P, 2)
    samples = []
    for level, (rows, columns) in enumerate(spatial_shapes):
        start = sum(h * w for h, w in spatial_shapes[:level])
        plane = (
            value[:, start : start + rows * columns].permute(0, 2, 3, 1).reshape(batch * heads, width, rows, columns)
        )
        samples.append(F.grid_sample(plane, grids[level], align_corners=False))  # (B * H, E, Q, P)
    weights = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, -1)  # (B * H, 1, Q, L * P)
    output = (torch.cat(samples, dim=-1) * weights).sum(-1)  # (B * H, E, Q)
    return output.view(batch, heads * width, queries).transpose(1, 2).contiguous()


def sample_densely(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample with a matrix of how much every query takes of every token; arguments as in `sample_by_grid`."""
    batch, tokens, heads, width = value.shape
    queries = locations.shape[1]
    # Rows within the one table of an image and head.
    corners = _find_corners(torch.Size((1, tokens, 1, width)), spatial_shapes, locations)
    shares = corners.bag_weights(weights)  # (B, Q, H, L, P, 4)
    row_of_bag = torch.arange(batch * queries * heads).view(batch, queries, heads, 1, 1, 1) * tokens
    matrix = shares.new_zeros(batch * queries * heads * tokens)
    matrix = matrix.scatter_add(0, (corners.rows + row_of_bag).flatten(), shares.flatten())
    output = torch.einsum("bqhs,bshe->bqhe", matrix.view(batch, queries, heads, tokens), value)
    return output.reshape(batch, queries, heads * width)


@dataclass
class _Corners:
    """The four corners around every sampling point: rows of the value table and parts of their bilinear weights."""

    rows: Tensor  # (B, Q, H, L, P, 4) int32, order (top left, top right, bottom left, bottom right)
    left: Tensor  # (B, Q, H, L, P) weight of the left column, 0 where it lies outside
    right: Tensor
    top: Tensor
    bottom: Tensor
    left_inside: Tensor  # (B, Q, H, L, P) 1 where the column exists
    right_inside: Tensor
    top_inside: Tensor
    bottom_inside: Tensor
    widths: Tensor  # (L, 1)
    heights: Tensor  # (L, 1)

    def bag_weights(self, attention_weights: Tensor) -> Tensor:
        """Return (B, Q, H, L, P, 4): bilinear weight times attention weight."""
        top, bottom = self.top * attention_weights, self.bottom * attention_weights
        return torch.stack([top * self.left, top * self.right, bottom * self.left, bottom * self.right], dim=-1)


def _find_corners(value_shape: torch.Size, spatial_shapes: list[tuple[int, int]], locations: Tensor) -> _Corners:
    """Locate the corners in the value seen as a table of B * S * H rows; a corner outside gets weight 0, any row."""
    batch, tokens, heads, _ = value_shape
    shapes = torch.tensor(spatial_shapes)
    heights, widths = shapes.to(locations.dtype)[:, :1], shapes.to(locations.dtype)[:, 1:]
    columns = shapes[:, 1:].int()
    starts = (shapes.prod(-1).cumsum(0) - shapes.prod(-1)).int()[:, None]

    # Far outside, everything is zero anyway: clamping keeps the integers small.
    x = torch.minimum((locations[..., 0] * widths - 0.5).clamp(min=-2), widths + 1)
    y = torch.minimum((locations[..., 1] * heights - 0.5).clamp(min=-2), heights + 1)
    x_low, y_low = x.floor(), y.floor()
    x_part, y_part = x - x_low, y - y_low
    left_inside = ((x_low >= 0) & (x_low < widths)).to(x.dtype)
    right_inside = ((x_low >= -1) & (x_low < widths - 1)).to(x.dtype)
    top_inside = ((y_low >= 0) & (y_low < heights)).to(x.dtype)
    bottom_inside = ((y_low >= -1) & (y_low < heights - 1)).to(x.dtype)

    token = y_low.int().mul_(columns).add_(x_low.int()).add_(starts)  # (B, Q, H, L, P)
    image_start = torch.arange(batch, dtype=torch.int32)[:, None, None, None, None] * (tokens * heads)
    first = token.mul_(heads).add_(torch.arange(heads, dtype=torch.int32)[:, None, None]).add_(image_start)
    to_corner = torch.cat([torch.zeros_like(columns), torch.ones_like(columns), columns, columns + 1], dim=1) * heads
    rows = (first[..., None] + to_corner[:, None]).clamp_(0, batch * tokens * heads - 1)
    return _Corners(
        rows=rows,
        left=left_inside * (1 - x_part),
        right=right_inside * x_part,
        top=top_inside * (1 - y_part),
        bottom=bottom_inside * y_part,
        left_inside=left_inside,
        right_inside=right_inside,
        top_inside=top_inside,
        bottom_inside=bottom_inside,
        widths=widths,
        heights=heights,
    )


def _sample(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample one block on the CPU: each bag of an `embedding_bag` is one query and head."""
    batch, tokens, heads, width = value.shape
    corners = _find_corners(value.shape, spatial_shapes, locations)
    bags = batch * locations.shape[1] * heads
    output = F.embedding_bag(
        corners.rows.view(bags, -1),
        value.reshape(batch * tokens * heads, width),
        per_sample_weights=corners.bag_weights(weights).view(bags, -1),
        mode="sum",
    )
    return output.view(batch, -1, heads * width)


def _sample_backward(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    *,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `_sample` with respect to value, locations and weights."""
    batch, tokens, heads, width = value.shape
    num_rows, num_bags = batch * tokens * heads, batch * locations.shape[1] * heads
    corners = _find_corners(value.shape, spatial_shapes, locations)
    rows = corners.rows.view(-1)
    bag_size = len(rows) // num_bags
    grad_output = grad_output.reshape(num_bags, width)
    bag_of_row = torch.arange(num_bags, dtype=torch.int32).repeat_interleave(bag_size)
    starts = torch.arange(0, len(rows), bag_size, dtype=torch.int32)

    # How much each corner's weight matters: dot product of the corner's row and the gradient of its bag.
    per_corner = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_output, value.reshape(num_rows, width), rows, starts, bag_of_row, 0
    ).view(corners.rows.shape)
    g_tl, g_tr, g_bl, g_br = per_corner.unbind(-1)
    c = corners
    grad_weights = c.top * (g_tl * c.left + g_tr * c.right) + c.bottom * (g_bl * c.left + g_br * c.right)
    right_less_left_top = g_tr * c.right_inside - g_tl * c.left_inside
    right_less_left_bottom = g_br * c.right_inside - g_bl * c.left_inside
    grad_x = (c.top * right_less_left_top + c.bottom * right_less_left_bottom) * weights * c.widths
    bottom_less_top_left = g_bl * c.bottom_inside - g_tl * c.top_inside
    bottom_less_top_right = g_br * c.bottom_inside - g_tr * c.top_inside
    grad_y = (c.left * bottom_less_top_left + c.right * bottom_less_top_right) * weights * c.heights

    # The gradient of the table is the transposed sum: bags become rows and rows become bags, sorted by row. Faster
    # than scattering, and deterministic.
    order = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows, minlength=num_rows)
    grad_table = F.embedding_bag(
        bag_of_row[order],
        grad_output,
        (counts.cumsum(0) - counts).int(),
        per_sample_weights=corners.bag_weights(weights).view(-1)[order],
        mode="sum",
    )
    return grad_table.view_as(value), torch.stack([grad_x, grad_y], dim=-1), grad_weights


def _blocks(batch: int, queries: int) -> list[tuple[slice, slice]]:
    """Cut B images and Q queries into blocks of about BLOCK_QUERIES; small images share a block."""
    images_per_block = max(1, BLOCK_QUERIES // max(queries, 1))
    return [
        (slice(b, b + images_per_block), slice(q, q + BLOCK_QUERIES))
        for b in range(0, batch, images_per_block)
        for q in range(0, queries, BLOCK_QUERIES)
    ]


class _EmbeddingBagSampling(torch.autograd.Function):
    """Sampling on the CPU in blocks; keeps only its inputs for the backward pass."""

    @staticmethod
    def forward(ctx, value, spatial_shapes, locations, weights):
        ctx.save_for_backward(value, locations, weights)
        ctx.spatial_shapes = spatial_shapes
        output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        for images, queries in _blocks(value.shape[0], locations.shape[1]):
            output[images, queries] = _sample(
                value[images], spatial_shapes, locations[images, queries], weights[images, queries]
            )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        value, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        for images, queries in _blocks(value.shape[0], locations.shape[1]):
            grads = _sample_backward(
                value[images],
                ctx.spatial_shapes,
                locations=locations[images, queries],
                weights=weights[images, queries],
                grad_output=grad_output[images, queries],
            )
            grad_value[images] += grads[0]
            grad_locations[images, queries], grad_weights[images, queries] = grads[1:]
        return grad_value, None, grad_locations, grad_weights
