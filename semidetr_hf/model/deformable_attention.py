"""Multi-scale deformable attention: every query samples a few points on every level of the feature pyramid.

`multi_scale_deformable_attention` is the one entry, and chooses how to sample: on the CPU as a product with a sparse
matrix (`sparse_sampling.py`), also under torch.compile; on CUDA by the kernels of `deformops`, if they are installed;
on other devices, and in graphs that torch.export takes elsewhere, by `grid_sample`. All give the same numbers (the
tests compare them, that of deformops where it is installed).

Source: Deformable DETR (arXiv 2010.04159), section 4.1; deformops (Efficient Multi-Scale Deformable Attention on GPUs,
TMLR 2026).

Legend: B images, S tokens of all levels, Q queries, H heads, E channels of one head, L levels, P points.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .sparse_sampling import sample_sparsely

try:
    from deformops.registry import msda as deformops_attention
except ImportError:
    deformops_attention = None

logger = logging.get_logger(__name__)


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
        (B, Q, H * E) in the dtype of `value`. Locations and sums are float32 whatever that is: in bfloat16 a location
        on a level 100 cells wide would be off by up to a fifth of a cell.

    Raises:
        ValueError: if the areas do not add up to S.
    """
    if sum(height * width for height, width in spatial_shapes) != value.shape[1]:
        raise ValueError(f"levels {spatial_shapes} do not add up to the {value.shape[1]} tokens of the value")
    sample: Callable[..., Tensor]
    if value.device.type == "cuda" and deformops_attention is not None and not torch.compiler.is_exporting():
        sample = sample_by_deformops
    else:
        sample = choose_sampling(value.device)
    output = sample(value.float(), spatial_shapes, sampling_locations.float(), attention_weights.float())
    return output.to(value.dtype)


def choose_sampling(device: torch.device) -> Callable[..., Tensor]:
    """Return `sample_sparsely` on the CPU and `sample_by_grid` elsewhere; for all devices without kernels."""
    if torch.compiler.is_exporting():
        return sample_by_grid  # operations that every runtime knows
    if device.type == "cpu":
        return sample_sparsely
    if device.type == "cuda" and not torch.compiler.is_compiling():
        logger.warning_once(
            "deformable attention runs without its fast kernels: install them by `pip install 'semidetr-hf[gpu]'` "
            "(Linux, Python 3.12 or newer, torch 2.11 or newer)"
        )
    return sample_by_grid


def sample_by_deformops(
    value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample with deformops; arguments as in `multi_scale_deformable_attention`, all float32.

    Of bfloat16 values its kernels would add up the gradients in bfloat16, in no fixed order.
    """
    shapes = torch.tensor(spatial_shapes)
    starts = shapes.prod(-1).cumsum(0) - shapes.prod(-1)
    shapes, starts = (tensor.to(value.device, non_blocking=True) for tensor in (shapes, starts))
    return deformops_attention(value, shapes, starts, locations, weights)


def sample_by_grid(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample level by level with `grid_sample`; arguments as in `multi_scale_deformable_attention`, all float32."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B * H, Q, P, 2)
    weights = weights.permute(3, 0, 2, 1, 4).reshape(len(spatial_shapes), batch * heads, 1, queries, -1)
    output = value.new_zeros(())  # (B * H, E, Q), level after level: the samples of all levels at once are large
    for level, (rows, columns) in enumerate(spatial_shapes):
        start = sum(h * w for h, w in spatial_shapes[:level])
        plane = (
            value[:, start : start + rows * columns].permute(0, 2, 3, 1).reshape(batch * heads, width, rows, columns)
        )
        samples = F.grid_sample(plane, grids[level], align_corners=False)  # (B * H, E, Q, P)
        output = output + (samples * weights[level]).sum(-1)
    return output.view(batch, heads * width, queries).transpose(1, 2).contiguous()
