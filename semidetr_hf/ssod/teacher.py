"""The EMA teacher: an averaged copy of the student that labels the weak views.

It computes in inference mode, which keeps account of nothing, and in low precision where that is asked for. What it
detects is moved to the CPU in one transfer: the bookkeeping of pseudo-labels is many small decisions, and for each of
them the host would have to wait for the device.

Source: Mean Teacher (arXiv 1703.01780); Semi-DETR (arXiv 2307.08095). The released code averages
parameters by position and leaves buffers alone; here parameters are paired by name and buffers are copied, which
matters for backbones whose batch norm is trained.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.model.decoder_queries import DecoderQueries
from semidetr_hf.model.outputs import EncodedImages
from semidetr_hf.ssod.pseudo_labels import suppress_duplicates
from semidetr_hf.structures import PseudoLabels, View


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered from all processes if it is sharded; then every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class EMATeacher(nn.Module):
    """A copy of the student that follows it slowly, without gradients and always in evaluation mode.

    It is never prepared for data-parallel training: every process holds the same one as long as every process updates
    it with the same student, buffers included.

    Args:
        student: copied; its own weights are not touched.
        compute_dtype: of `encode`, `detect` and `answer`, as autocast takes it; weights and averages stay float32.
            None = that of the student.
    """

    def __init__(self, student: SemiDetrForObjectDetection, compute_dtype: torch.dtype | None = None):
        super().__init__()
        self.compute_dtype = compute_dtype
        self.detector = copy.deepcopy(student)
        for parameter in self.detector.parameters():
            parameter.requires_grad_(False)
        self.num_updates = 0
        self.eval()

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: SemiDetrForObjectDetection, momentum: float) -> None:
        """Move the teacher towards the student: teacher <- momentum * teacher + (1 - momentum) * student.

        Args:
            student: the unwrapped student; its parameters may be sharded.
            momentum: 0 copies the student, 1 changes nothing (but buffers).
        """
        theirs = {name: whole_tensor(parameter.detach()) for name, parameter in student.named_parameters()}
        ours = dict(self.detector.named_parameters())
        names = list(ours)
        torch._foreach_lerp_([ours[n] for n in names], [theirs[n] for n in names], 1 - momentum)
        their_buffers = dict(student.named_buffers())
        for name, buffer in self.detector.named_buffers():
            buffer.copy_(their_buffers[name])
        self.num_updates += 1

    @contextmanager
    def _computing(self) -> Iterator[None]:
        device = self.detector.device.type
        precision = torch.autocast(device, self.compute_dtype) if self.compute_dtype else nullcontext()
        with torch.inference_mode(), precision:
            yield

    def encode(self, view: View) -> EncodedImages:
        """Encode the weak views; once per step."""
        with self._computing():
            return self.detector.encode(view.pixel_values, view.pixel_mask)

    @torch.no_grad()
    def detect(
        self, encoded: EncodedImages, view: View, *, iou_threshold: float, min_score: float, max_detections: int
    ) -> list[PseudoLabels]:
        """Return the detections of every image, on the CPU, boxes in pixels of the weak view.

        See `suppress_duplicates`.
        """
        with self._computing():
            predictions, _ = self.detector.decode(encoded)
        last = predictions.logits[-1].float(), predictions.boxes[-1].float()
        # Also a copy, which has left inference mode: losses keep boxes for their backward pass.
        logits, boxes = torch.cat(last, dim=-1).cpu().split([last[0].shape[-1], 4], dim=-1)
        return [
            suppress_duplicates(
                logits,
                boxes,
                image_size=(height, width),
                iou_threshold=iou_threshold,
                min_score=min_score,
                max_detections=max_detections,
            )
            for logits, boxes, (height, width) in zip(logits, boxes, view.image_sizes.tolist(), strict=True)
        ]

    def answer(self, encoded: EncodedImages, queries: DecoderQueries) -> Tensor:
        """Return the states of extra queries in every decoder layer, (P, B, N, D).

        Args:
            encoded: from `encode`.
            queries: N extra queries; they see the matching queries, which are decoded with them.
        """
        with self._computing():
            _, decoded = self.detector.decode(encoded, extra_queries=queries)
        return decoded["intermediate_hidden_states"][:, :, : len(queries)].transpose(0, 1)

    def get_extra_state(self) -> Tensor:
        """Return what the state dict holds besides weights: without the counter a resumed run would warm up again."""
        return torch.tensor(self.num_updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` returned."""
        self.num_updates = int(state)
