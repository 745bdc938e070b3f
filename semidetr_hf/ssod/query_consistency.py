"""Cross-view query consistency: the same query about an object must be answered alike in both views.

Pseudo-boxes cut features out of the views, a projector turns them into the content of extra decoder queries, and the
student's answers in the strong view are drawn towards the teacher's in the weak view.

Source: Semi-DETR (arXiv 2307.08095), cross-view query consistency. The paper takes content from both views and
exchanges it; the released code gives the content of the weak view to both decoders. Both are possible here: the two
contents are arguments. Other differences from the released code:

- it multiplies row weights and errors in such a way that every weight meets every row; `rows="all"` gives its value
  without its memory, `rows="real"` what the weights are for;
- it runs the projector on five copies of each box, so that BatchNorm1d never sees a single row; here each box is
  projected once, and a single row is normalised with running statistics.

Legend: B images, G boxes of one image, R boxes of all images, K copies, n = max G, N = K * n query slots, M = K * R
slots with a box, D width, L levels, P decoder layers, S side of an RoI in bins.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import roi_align

from semidetr_hf.model.box_ops import inverse_sigmoid, xyxy_to_cxcywh
from semidetr_hf.model.criterion import average_over_processes
from semidetr_hf.model.decoder_queries import DecoderQueries


class QueryProjector(nn.Module):
    """Turns the features of an RoI into the content of a query; trained by gradient, not averaged into the teacher.

    Args:
        d_model: width of the features and of the query.
        hidden: width between the two linear layers.
        roi_size: side of an RoI in bins.

    Source: layers and names of the released code, so that its weights load.
    """

    def __init__(self, d_model: int, hidden: int = 1024, roi_size: int = 7):
        super().__init__()
        self.conv1 = nn.Conv2d(d_model, d_model, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_model)
        self.conv2 = nn.Conv2d(d_model, d_model, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_model)
        self.fc1 = nn.Linear(d_model * roi_size**2, hidden)
        self.bn = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, d_model)

    def forward(self, rois: Tensor) -> Tensor:
        """Return the content of one query per RoI.

        Args:
            rois: (R, D, S, S), see `roi_features`; R may be 0.

        Returns:
            (R, D), not negative. With R = 0 every parameter has a gradient, of zeros: FSDP and DeepSpeed pair the
            gradients of the processes by how many there are and in which order they come.
        """
        # Layers order their gradients differently for nothing at all, so one RoI of zeros stands in.
        stand_in = len(rois) == 0
        rois = rois.new_zeros(1, *rois.shape[1:]) if stand_in else rois
        features = F.relu(_normalize(self.bn1, self.conv1(rois), running=stand_in))
        features = F.relu(_normalize(self.bn2, self.conv2(features), running=stand_in))
        # One row has no variance: BatchNorm1d raises, and copies of the row would come out as the bias alone,
        # whatever the box shows.
        features = F.relu(_normalize(self.bn, self.fc1(features.flatten(1)), running=len(rois) == 1))
        return F.relu(self.fc2(features))[: 0 if stand_in else None]


def _normalize(norm: _BatchNorm, features: Tensor, *, running: bool) -> Tensor:
    """Normalize, in training with the statistics of these features or, if `running`, of earlier ones."""
    if running:
        return F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    normalized: Tensor = norm(features)
    return normalized


def roi_level(boxes_xyxy: Tensor, num_levels: int, finest_scale: float = 56.0) -> Tensor:
    """Choose the level of the pyramid that boxes are cut from.

    Args:
        boxes_xyxy: (G, 4), pixels.
        num_levels: of the pyramid, the finest is level 0.
        finest_scale: level l takes square roots of areas from `finest_scale` * 2^l to twice that, in pixels; the first
            and the last level also take all smaller and larger ones.

    Returns:
        (G,) int64 in 0..num_levels-1.

    Source: Feature Pyramid Networks (arXiv 1612.03144), the assignment of RoIs; 56 is the released code's, although
    its finest level has stride 8.
    """
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).float()
    level = torch.log2(sides.prod(dim=-1).sqrt() / finest_scale + 1e-6).floor()
    return level.clamp(0, num_levels - 1).long()


def level_strides(spatial_shapes: list[tuple[int, int]], padded_size: tuple[int, int]) -> list[int]:
    """Return how many pixels a cell of each level spans: a power of two.

    Padded size and shapes are compared from one level to the next: a map of 3 cells at stride 64 may stand for
    129 pixels, which alone looks more like stride 32.

    Args:
        spatial_shapes: (height, width) of each level, finest first.
        padded_size: (height, width) of the padded images in pixels.

    Raises:
        ValueError: if a level has more cells than the level before it, or than there are pixels.
    """
    longer = 0 if padded_size[0] >= padded_size[1] else 1
    sides = [padded_size[longer], *(shape[longer] for shape in spatial_shapes)]
    strides, stride = [], 1
    for previous, side in pairwise(sides):
        if side > previous:
            raise ValueError(
                f"levels of (height, width) {spatial_shapes} do not shrink from padded_size {padded_size}; "
                "pass the size of the padded pixel_values and the levels from fine to coarse"
            )
        stride *= 2 ** round(log2(previous / side))
        strides.append(stride)
    return strides


def roi_features(
    pyramid: list[Tensor], boxes_xyxy: list[Tensor], padded_size: tuple[int, int], *, roi_size: int = 7
) -> Tensor:
    """Cut the features of boxes out of the pyramid, each from the level that suits its size.

    Args:
        pyramid: L tensors (B, D, H_l, W_l), finest first.
        boxes_xyxy: per image (G, 4) on the CPU, pixels of the view; padding is at the bottom and right, so padded and
            unpadded view have the same origin.
        padded_size: (height, width) of the padded images in pixels.
        roi_size: side S of the result in bins; a bin is the mean of ceil(box side in cells / S) samples a side.

    Returns:
        (R, D, S, S) float32, image after image, the boxes of an image in their order.

    Raises:
        ValueError: if `boxes_xyxy` does not have one entry per image.

    Convention: a cell spans stride x stride pixels and its value belongs to its centre (`aligned`).

    Source: Mask R-CNN (arXiv 1703.06870), RoIAlign.
    """
    if len(boxes_xyxy) != len(pyramid[0]):
        raise ValueError(f"boxes_xyxy has {len(boxes_xyxy)} images, the pyramid {len(pyramid[0])}; pass one each")
    boxes = torch.cat(boxes_xyxy).float()
    levels = roi_level(boxes, len(pyramid))
    rois = torch.cat([_image_index(boxes_xyxy)[:, None].to(boxes), boxes], dim=1)  # (R, 5)
    strides = level_strides([(level.shape[-2], level.shape[-1]) for level in pyramid], padded_size)
    features = []
    for i, (level, stride) in enumerate(zip(pyramid, strides, strict=True)):
        chosen = rois[levels == i].to(level.device, non_blocking=True)
        features.append(
            roi_align(level.float(), chosen, roi_size, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True)
        )
    place = levels.argsort(stable=True).argsort()  # among the features, which come level after level
    return torch.cat(features)[place.to(pyramid[0].device, non_blocking=True)]


@dataclass(frozen=True)
class ConsistencyQueries:
    """One set of queries in two views; the same slot asks about the same object.

    Attributes:
        strong: N queries for the student.
        weak: N queries for the teacher.
        image_index: (M,) int64, the image of each slot with a box: copy after copy, in each image after image.
        query_index: (M,) int64, the slot, 0..N-1.
        is_real: (M,) bool, False for the dummy box of an image without boxes.
    """

    strong: DecoderQueries
    weak: DecoderQueries
    image_index: Tensor
    query_index: Tensor
    is_real: Tensor


def build_consistency_queries(
    content_for_strong: Tensor,
    content_for_weak: Tensor,
    boxes_strong: list[Tensor],
    boxes_weak: list[Tensor],
    *,
    strong_sizes: Tensor,
    weak_sizes: Tensor,
    eps: float,
    copies: int,
    is_real: list[Tensor] | None = None,
) -> ConsistencyQueries:
    """Lay out the queries of a batch: copy r of the k-th box of an image stands in slot r * n + k.

    The copies of a box are equal and, being in groups that do not see each other, answered alike. Slots without a box
    have content 0 and logits 0.

    Args:
        content_for_strong: (R, D), image after image, what the student's queries carry.
        content_for_weak: (R, D), the same for the teacher.
        boxes_strong: per image (G, 4) xyxy, pixels of the strong view; boxes and sizes are on the CPU.
        boxes_weak: the same boxes in pixels of the weak view.
        strong_sizes: (B, 2), unpadded (height, width) of each strong view in pixels.
        weak_sizes: (B, 2), the same of each weak view.
        eps: bound of the inverse sigmoid.
        copies: K (5 in the released code, which changes no loss).
        is_real: per image (G,) bool, see `with_dummies`; None = all real.

    Returns:
        The queries, without any group if no image has a box.

    Raises:
        ValueError: if `copies` is not positive or lengths do not agree.
    """
    counts = [len(boxes) for boxes in boxes_strong]
    if is_real is None:
        is_real = [torch.ones_like(boxes[:, 0], dtype=torch.bool) for boxes in boxes_strong]
    _check_lengths(counts, [content_for_strong, content_for_weak], [boxes_weak, is_real], copies)
    slots, device = max(counts), content_for_strong.device
    image_index = _image_index(boxes_strong)
    slot_index = torch.cat([torch.arange(count) for count in counts])
    first_slots = torch.arange(copies) * slots
    place, query_index, real = (
        index.to(device, non_blocking=True)
        for index in (
            image_index * slots + slot_index,
            (first_slots[:, None] + slot_index).flatten(),
            torch.cat(is_real).repeat(copies),
        )
    )

    def fill(content: Tensor, boxes: list[Tensor], sizes: Tensor) -> DecoderQueries:
        logits = _reference_logits(torch.cat(boxes).float(), sizes[image_index], eps).to(device, non_blocking=True)
        rows = [
            values.new_zeros((len(counts) * slots, values.shape[1]))
            .index_copy(0, place, values)
            .view(len(counts), slots, values.shape[1])
            .repeat(1, copies, 1)
            for values in (content, logits)
        ]
        return DecoderQueries(rows[0], rows[1], group_sizes=(slots,) * copies if slots else ())

    return ConsistencyQueries(
        strong=fill(content_for_strong, boxes_strong, strong_sizes),
        weak=fill(content_for_weak, boxes_weak, weak_sizes),
        image_index=image_index.repeat(copies).to(device, non_blocking=True),
        query_index=query_index,
        is_real=real,
    )


def with_dummies(
    boxes_strong: list[Tensor], boxes_weak: list[Tensor], strong_sizes: Tensor, weak_sizes: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Give every image without boxes one dummy box: centred, half as wide and half as high as the view.

    Args:
        boxes_strong: per image (G, 4) xyxy, pixels of the strong view.
        boxes_weak: the same boxes in pixels of the weak view.
        strong_sizes: (B, 2), unpadded (height, width) of each strong view in pixels.
        weak_sizes: (B, 2), the same of each weak view.

    Returns:
        The boxes of both views and, per image, (G,) bool which of them are real.

    Source: the released code of Semi-DETR; with `rows="all"` the dummies count in the loss.
    """
    is_real = [torch.full((max(len(b), 1),), len(b) > 0, dtype=torch.bool, device=b.device) for b in boxes_strong]
    return _fill_empty(boxes_strong, strong_sizes), _fill_empty(boxes_weak, weak_sizes), is_real


def consistency_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    queries: ConsistencyQueries,
    *,
    rows: Literal["real", "all"],
    unit_length: bool = True,
) -> Tensor:
    """Return, per decoder layer, how far the student's answers are from the teacher's: the mean squared error.

    In float32.

    Args:
        student_hidden: (P, B, N, D), outputs of the decoder layers at the slots of `queries.strong`.
        teacher_hidden: (P, B, N, D), at those of `queries.weak`; gets no gradient.
        queries: which slots count.
        rows: "real" = mean over real boxes, of all processes together. "all" = mean of each process over all rows,
            dummies included, times the share of real ones: what the released code computes. Equal without dummies.
        unit_length: scale states to length 1 first, so that the error of a row is (2 - 2 cos) / D (released code);
            without it the states, which a layer norm has scaled to a length of about sqrt(D), err D times as much.

    Returns:
        (P,) float32; without any row 0, but still part of the student's graph.

    Raises:
        ValueError: if the states do not have N slots, or `rows` is neither of the two.

    Source: Semi-DETR (arXiv 2307.08095), the consistency loss; the scaling to length 1 is the released code's, and
    what others report of the paper does not mention it.
    """
    if rows not in ("real", "all"):
        raise ValueError(f'rows must be "real" or "all", got {rows!r}')
    for name, hidden in (("student_hidden", student_hidden), ("teacher_hidden", teacher_hidden)):
        if hidden.shape[2] != len(queries.strong):
            raise ValueError(
                f"{name} has {hidden.shape[2]} queries, the consistency queries {len(queries.strong)} slots; "
                "pass only the states of those slots, they stand first"
            )
    where = (slice(None), queries.image_index, queries.query_index)
    student, teacher = student_hidden[where].float(), teacher_hidden[where].detach().float()  # (P, M, D)
    if unit_length:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    errors = (student - teacher).square().mean(dim=-1)  # (P, M)
    weights = queries.is_real.float()
    if rows == "real":
        # Reduced over processes also when nothing was mined here: the others wait for it. No lower bound of 1 as for
        # boxes: the mean over a process may be a fraction of a row, and without any row there is nothing to divide.
        num_real = average_over_processes(weights.sum())
        return (weights * errors).sum(dim=-1) / torch.where(num_real > 0, num_real, 1)
    num_rows = max(len(weights), 1)
    return weights.sum() / num_rows * errors.sum(dim=-1) / num_rows


def _image_index(boxes: list[Tensor]) -> Tensor:
    """Return the image of each box: (R,) int64."""
    return torch.cat([torch.full((len(b),), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)])


def _reference_logits(boxes_xyxy: Tensor, image_sizes: Tensor, eps: float) -> Tensor:
    """Return (R, 4) logits of boxes in pixels, each with the (height, width) of its own view."""
    # What lies outside the view counts as 0 or 1: inverse_sigmoid bounds both sides.
    return inverse_sigmoid(xyxy_to_cxcywh(boxes_xyxy / image_sizes[:, [1, 0, 1, 0]]), eps=eps)


def _fill_empty(boxes: list[Tensor], image_sizes: Tensor) -> list[Tensor]:
    corners = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    return [
        b if len(b) else corners.to(b) * size[[1, 0, 1, 0]].to(b) for b, size in zip(boxes, image_sizes, strict=True)
    ]


def _check_lengths(counts: list[int], contents: list[Tensor], per_image: list[list[Tensor]], copies: int) -> None:
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if not counts:
        raise ValueError("boxes_strong has no image; a batch needs at least one, an image may have no box")
    for name, content in zip(("content_for_strong", "content_for_weak"), contents, strict=True):
        if len(content) != sum(counts):
            raise ValueError(f"{name} has {len(content)} rows, boxes_strong {sum(counts)} boxes; pass one row per box")
    for name, values in zip(("boxes_weak", "is_real"), per_image, strict=True):
        lengths = [len(value) for value in values]
        if lengths != counts:
            raise ValueError(f"{name} has {lengths} entries per image, boxes_strong {counts}; pass the same boxes")
