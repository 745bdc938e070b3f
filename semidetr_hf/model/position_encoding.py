"""Where tokens and boxes are, as numbers: sine encodings, valid ratios and token centres.

Everything is computed in float32, whatever the precision of the network.

Source: DETR (arXiv 2005.12872), appendix A.4; Deformable DETR (arXiv 2010.04159); box encoding of DINO
(arXiv 2203.03605).

Legend: B images, H and W cells of one level, D width.
"""

import math

import torch
from torch import Tensor


def sine_encoding(positions: Tensor, num_features: int, temperature: float) -> Tensor:
    """Encode positions in 0..1 by sines and cosines of growing wavelength, in float32.

    Args:
        positions: (...), multiplied by 2 pi.
        num_features: even; feature 2i is a sine, 2i + 1 a cosine of the same frequency.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., num_features).
    """
    index = torch.arange(num_features, dtype=torch.float32, device=positions.device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    angles = positions.float()[..., None] * (2 * math.pi) / frequency
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_position_embedding(mask: Tensor, width: int, temperature: float) -> Tensor:
    """Return the sine embedding of every cell of one level.

    Args:
        mask: (B, H, W) bool, True = real image.
        width: D; the first half encodes y, the second x.
        temperature: 20 in DINO.

    Returns:
        (B, H, W, D) float32. Positions count real cells only and end at 1.
    """
    real = mask.float()
    y, x = real.cumsum(1), real.cumsum(2)
    y, x = y / (y[:, -1:] + 1e-6), x / (x[:, :, -1:] + 1e-6)
    half = width // 2
    return torch.cat([sine_encoding(y, half, temperature), sine_encoding(x, half, temperature)], dim=-1)


def box_position_embedding(boxes: Tensor, width: int) -> Tensor:
    """Return the sine embedding of boxes: (..., 4) cxcywh -> (..., 2 D) float32 in the order y, x, w, h."""
    x, y, w, h = boxes.unbind(-1)
    return sine_encoding(torch.stack([y, x, w, h], dim=-1), width // 2, temperature=10000).flatten(-2)


def valid_ratio(mask: Tensor) -> Tensor:
    """Return the real share of a level: (B, H, W) bool -> (B, 2) float32, (width, height)."""
    return torch.stack([mask[:, 0].float().mean(-1), mask[:, :, 0].float().mean(-1)], dim=-1)


def token_centers(mask: Tensor) -> Tensor:
    """Return the centre (x, y) of every cell as a share of the real image: (B, H, W) bool -> (B, H * W, 2) float32."""
    _, rows, columns = mask.shape
    y = torch.arange(rows, device=mask.device, dtype=torch.float32) + 0.5
    x = torch.arange(columns, device=mask.device, dtype=torch.float32) + 0.5
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # (H * W, 2), row by row
    size = valid_ratio(mask) * torch.tensor([columns, rows]).to(mask.device, non_blocking=True)
    return grid[None] / size[:, None]
