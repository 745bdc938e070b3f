"""Extra queries that stand before the matching queries in the decoder, and the mask that keeps them apart.

Contrastive denoising and cross-view query consistency both put groups of queries into the decoder. A group must not
see another group (it would read the answer there), the matching queries must not see any group (groups do not exist at
inference), and every group sees all matching queries.

Source: DINO (arXiv 2203.03605), section 3.3; Semi-DETR (arXiv 2307.08095), and the released code, which
lays them out as [consistency | denoising | matching].

Legend: B images, N extra queries, Q matching queries, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecoderQueries:
    """Queries given to the decoder from outside.

    Attributes:
        content: (B, N, D), what each query carries.
        reference_logits: (B, N, 4), logit of its first box, cxcywh normalised by the unpadded image.
        group_sizes: lengths of the consecutive groups, which do not see each other; they add up to N.
    """

    content: Tensor
    reference_logits: Tensor
    group_sizes: tuple[int, ...]

    def __post_init__(self):
        if sum(self.group_sizes) != self.content.shape[1]:
            raise ValueError(
                f"group_sizes {self.group_sizes} add up to {sum(self.group_sizes)}, "
                f"but content has {self.content.shape[1]} queries"
            )

    def __len__(self) -> int:
        return self.content.shape[1]


def cat(*queries: DecoderQueries) -> DecoderQueries:
    """Put several sets of queries behind each other; their groups stay apart.

    Raises:
        ValueError: if none is given.
    """
    if not queries:
        raise ValueError("cat() needs at least one DecoderQueries, got none")
    return DecoderQueries(
        content=torch.cat([q.content for q in queries], dim=1),
        reference_logits=torch.cat([q.reference_logits for q in queries], dim=1),
        group_sizes=sum((q.group_sizes for q in queries), ()),
    )


def build_attention_mask(group_sizes: tuple[int, ...], num_matching: int, device: torch.device | str) -> Tensor:
    """Return which query must not look at which.

    Args:
        group_sizes: lengths of the groups in front.
        num_matching: number of matching queries behind them.
        device: where to build it.

    Returns:
        (N + Q, N + Q) bool, True = row may not attend to column.
    """
    sizes = torch.tensor([*group_sizes, num_matching])
    group = torch.arange(len(sizes)).repeat_interleave(sizes).to(device, non_blocking=True)  # (N + Q,)
    is_matching = group == len(group_sizes)
    return (group[:, None] != group[None, :]) & ~is_matching[None, :]
