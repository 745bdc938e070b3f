"""Contrastive denoising: noised copies of the boxes that the decoder must repair or reject.

Every group holds a positive and a negative copy of each box. The positive copy must be repaired; the negative one,
noised more strongly, must be recognised as background. The answer of each positive copy is known: nothing is matched.

Layout of a group with m slots per half: `[positive 0..m-1 | negative 0..m-1]`, m = the largest number of boxes of one
image; images with fewer boxes leave slots empty (content 0, reference logit 0, counted as background).

Source: DINO (arXiv 2203.03605), section 3.3. Where official DINO and the released Semi-DETR code differ (an image
without boxes), this follows official DINO: empty slots, no dummy box. Whether they count in the loss is an option of
`SetCriterion`.

Legend: B images, R groups, m slots per half, N = 2 R m queries, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .box_ops import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from .decoder_queries import DecoderQueries
from .matching import pad_targets


@dataclass(frozen=True)
class DenoisingNoise:
    """Every random number of one batch of denoising queries.

    Attributes:
        flips_label: (B, R, 2, m) bool, the copy gets a random label.
        random_labels: (B, R, 2, m) int64, that label.
        box_shift: (B, R, 2, m, 4) float, how far each corner coordinate moves, in units of half the box size; its size
            lies in [0, 1) for positive and [1, 2) for negative copies, before scaling.
    """

    flips_label: Tensor
    random_labels: Tensor
    box_shift: Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """Denoising queries together with their answers.

    Attributes:
        queries: N = 2 R m decoder queries in R groups.
        image_index: (K,) int64, image of each positive query.
        query_index: (K,) int64, its place among the N queries.
        target_index: (K,) int64, the box of that image which it must repair.
        num_groups: R, 0 if no image has a box.
    """

    queries: DecoderQueries
    image_index: Tensor
    query_index: Tensor
    target_index: Tensor
    num_groups: int


def num_denoising_groups(num_denoising_queries: int, max_boxes: int) -> int:
    """Return how many groups fit: 100 // m of the paper's 100 pairs, at least one; 0 without any box."""
    return max(1, num_denoising_queries // max_boxes) if max_boxes else 0


def draw_noise(
    num_images: int, num_groups: int, max_boxes: int, *, num_labels: int, label_noise: float, device: torch.device
) -> DenoisingNoise:
    """Draw the random numbers of one batch.

    Args:
        num_images: B.
        num_groups: R.
        max_boxes: m.
        num_labels: random labels are drawn from 0..num_labels-1 and may equal the true one.
        label_noise: half of this is the probability of a random label (0.5 -> 0.25, as in DINO).
        device: where to draw.
    """
    shape = (num_images, num_groups, 2, max_boxes)
    sign = torch.randint(0, 2, (*shape, 4), device=device) * 2 - 1
    magnitude = torch.rand((*shape, 4), device=device)
    magnitude[:, :, 1] += 1  # negative copies move by one to two half sizes
    return DenoisingNoise(
        flips_label=torch.rand(shape, device=device) < label_noise / 2,
        random_labels=torch.randint(0, num_labels, shape, device=device),
        box_shift=sign * magnitude,
    )


def build_denoising_queries(
    targets: list[dict[str, Tensor]],
    label_embedding: nn.Embedding,
    *,
    noise: DenoisingNoise,
    box_noise: float,
    eps: float,
) -> DenoisingQueries:
    """Noise the boxes of a batch and turn them into decoder queries.

    Args:
        targets: per image `class_labels` (G,) int64 and `boxes` (G, 4) cxcywh normalised.
        label_embedding: content of a query = row of its (noised) label.
        noise: the draws; its shape fixes the number of groups R and slots m.
        box_noise: scale of `noise.box_shift` (0.4 in the paper).
        eps: bound of the inverse sigmoid.

    Returns:
        The queries; with R = 0 or m = 0 an empty set that still depends on `label_embedding`, so that data-parallel
        training finds a (zero) gradient for it.
    """
    num_images, num_groups, _, max_boxes = noise.flips_label.shape
    device = noise.flips_label.device
    padded = pad_targets(targets, device)
    labels, boxes = padded.class_labels[:, :max_boxes], padded.boxes[:, :max_boxes]
    # What follows from the numbers of boxes is laid out on the host: on the device it would have to be waited for.
    is_box = torch.arange(max_boxes) < torch.tensor(padded.counts, dtype=torch.int64)[:, None]  # (B, m)
    positive = is_box[:, None].expand(num_images, num_groups, max_boxes)
    image_index, group_index, target_index = (
        index.to(device, non_blocking=True) for index in positive.nonzero(as_tuple=True)
    )
    is_box = is_box.to(device, non_blocking=True)

    noised_labels = torch.where(noise.flips_label, noise.random_labels, labels[:, None, None])  # (B, R, 2, m)
    half_size = boxes[..., 2:].repeat(1, 1, 2) / 2
    corners = cxcywh_to_xyxy(boxes)[:, None, None] + noise.box_shift * box_noise * half_size[:, None, None]
    logits = inverse_sigmoid(xyxy_to_cxcywh(corners.clamp(0, 1)), eps=eps)  # (B, R, 2, m, 4)

    used = is_box[:, None, None].expand_as(noised_labels)
    content = label_embedding(noised_labels) * used[..., None]
    queries = DecoderQueries(
        content=content.flatten(1, 3),
        reference_logits=(logits * used[..., None]).flatten(1, 3),
        group_sizes=(2 * max_boxes,) * num_groups,
    )
    return DenoisingQueries(
        queries=queries,
        image_index=image_index,
        query_index=group_index * 2 * max_boxes + target_index,
        target_index=target_index,
        num_groups=num_groups,
    )
