"""The EMA teacher: an averaged copy of the student that labels the weak views.

Source: Mean Teacher (arXiv 1703.01780); Semi-DETR (arXiv 2307.08095). The released code averages
parameters by position and leaves buffers alone; here parameters are paired by name and buffers are copied, which
matters for backbones whose batch norm is trained.
"""

import copy

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
    """

    def __init__(self, student: SemiDetrForObjectDetection):
        super().__init__()
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

    @torch.no_grad()
    def encode(self, view: View) -> EncodedImages:
        """Encode the weak views; once per step."""
        return self.detector.encode(view.pixel_values, view.pixel_mask)

    @torch.no_grad()
    def detect(
        self, encoded: EncodedImages, view: View, *, iou_threshold: float, min_score: float, max_detections: int
    ) -> list[PseudoLabels]:
        """Return the detections of every image, boxes in pixels of its weak view; see `suppress_duplicates`."""
        predictions, _ = self.detector.decode(encoded)
        return [
            suppress_duplicates(
                logits,
                boxes,
                image_size=(height, width),
                iou_threshold=iou_threshold,
                min_score=min_score,
                max_detections=max_detections,
            )
            for logits, boxes, (height, width) in zip(
                predictions.logits[-1], predictions.boxes[-1], view.image_sizes.tolist(), strict=True
            )
        ]

    @torch.no_grad()
    def answer(self, encoded: EncodedImages, queries: DecoderQueries) -> Tensor:
        """Return the states of extra queries in every decoder layer, (P, B, N, D).

        Args:
            encoded: from `encode`.
            queries: N extra queries; they see the matching queries, which are decoded with them.
        """
        _, decoded = self.detector.decode(encoded, extra_queries=queries)
        return decoded["intermediate_hidden_states"][:, :, : len(queries)].transpose(0, 1)

    def get_extra_state(self) -> Tensor:
        """Return what the state dict holds besides weights: without the counter a resumed run would warm up again."""
        return torch.tensor(self.num_updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` returned."""
        self.num_updates = int(state)
