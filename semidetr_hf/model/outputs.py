"""What encoder, decoder and the two models return.

Legend: B images, S tokens of all levels, Q matching queries, N extra queries, D width, L levels, P decoder layers,
C labels.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EncodedImages:
    """A batch of images after the encoder, ready to be decoded any number of times.

    Attributes:
        pyramid: L tensors (B, D, H_l, W_l), projected backbone features before the encoder.
        memory: (B, S, D), encoder output.
        token_mask: (B, S) bool, True = real image.
        spatial_shapes: (height, width) of each level.
        valid_ratios: (B, L, 2) float32, real share of width and height of each level.
        proposal_logits: (B, Q, C), class logits of the tokens that become queries, best first.
        proposal_box_logits: (B, Q, 4) float32, logits of their boxes, with gradient.
        encoder_hidden_states: inputs and outputs of the encoder layers, if asked for.
        encoder_attentions: (B, S, heads, L, points) of each encoder layer, if asked for.
    """

    pyramid: list[Tensor]
    memory: Tensor
    token_mask: Tensor
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    proposal_logits: Tensor
    proposal_box_logits: Tensor
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SemiDetrDecoderOutput(ModelOutput):
    """What the decoder returns; N extra queries stand before the Q matching ones.

    Attributes:
        last_hidden_state: (B, N + Q, D), normalised output of the last layer.
        intermediate_hidden_states: (B, P, N + Q, D), normalised output of every layer.
        intermediate_reference_points: (B, P, N + Q, 4), the box each layer's prediction starts from, with gradient.
        hidden_states: input of the first and output of every layer, if asked for.
        attentions: (B, heads, N + Q, N + Q) self-attention of every layer, if asked for.
        cross_attentions: (B, N + Q, heads, L, points) of every layer, if asked for.
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_reference_points: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SemiDetrModelOutput(ModelOutput):
    """Output of `SemiDetrModel`; all boxes cxcywh normalised by the unpadded image.

    Attributes:
        last_hidden_state: (B, Q, D), normalised output of the last decoder layer.
        intermediate_hidden_states: (B, P, Q, D).
        intermediate_reference_points: (B, P, Q, 4), the box each layer's prediction starts from.
        encoder_logits: (B, Q, C), class logits of the encoder tokens that became queries.
        encoder_pred_boxes: (B, Q, 4), their boxes.
        encoder_last_hidden_state: (B, S, D).
        decoder_hidden_states, decoder_attentions, cross_attentions, encoder_hidden_states, encoder_attentions: one
            tensor per layer, if asked for with `output_hidden_states` or `output_attentions`.
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_reference_points: Tensor | None = None
    encoder_logits: Tensor | None = None
    encoder_pred_boxes: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SemiDetrObjectDetectionOutput(ModelOutput):
    """Output of `SemiDetrForObjectDetection`; all boxes cxcywh normalised by the unpadded image.

    Attributes:
        loss: (), weighted sum of `loss_dict`, if `labels` are given.
        loss_dict: every unweighted loss by name, see `SetCriterion`.
        logits: (B, Q, C) of the last decoder layer, before the sigmoid.
        pred_boxes: (B, Q, 4) of the last decoder layer.
        auxiliary_outputs: `{"logits", "pred_boxes"}` of every other decoder layer, if `labels` are given.
        others: as in `SemiDetrModelOutput`.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_reference_points: Tensor | None = None
    encoder_logits: Tensor | None = None
    encoder_pred_boxes: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
