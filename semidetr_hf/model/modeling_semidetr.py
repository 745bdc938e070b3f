"""The Semi-DETR detector: DINO with four feature levels, as transformers models.

The way of an image:

    pixels -> backbone -> projected pyramid -> encoder -> memory      SemiDetrModel.encode()  (once per image)
    memory -> best tokens become queries -> decoder -> boxes          SemiDetrModel.decode()  (as often as needed)

The seam between the two lets a semi-supervised step decode the same image with different extra queries without paying
for the encoder again.

Box refinement, in the notation of the code: layer l refines `reference` to `sigmoid(box_head(x) + logit(reference))`
with the plain layer output x and hands the *detached* result to layer l + 1. The prediction of layer l uses the
normalised output and the *undetached* reference, so its gradient also reaches layer l - 1 ("look forward twice").

Source: DINO (arXiv 2203.03605); Deformable DETR (arXiv 2010.04159) for the attention and the two stages.

Legend: B images, S tokens of all levels, Q matching queries, N extra queries, D width, L levels, P decoder layers,
C labels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .backbone import build_backbone, freeze_first_stages
from .box_ops import inverse_sigmoid
from .configuration_semidetr import SemiDetrConfig
from .criterion import DetectorPredictions, SetCriterion, average_num_boxes, loss_weight
from .decoder_queries import DecoderQueries, build_attention_mask, cat
from .deformable_attention import multi_scale_deformable_attention
from .denoising import DenoisingQueries, build_denoising_queries, draw_noise, num_denoising_groups
from .matching import HungarianMatcher
from .outputs import (
    EncodedImages,
    SemiDetrDecoderOutput,
    SemiDetrModelOutput,
    SemiDetrObjectDetectionOutput,
)
from .position_encoding import box_position_embedding, sine_position_embedding, token_centers, valid_ratio

# ---------------------------------------------------------------------------------------------------------------------
# Building blocks
# ---------------------------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int, init_rule: str | None = None) -> nn.Linear:
    """Return a linear layer that remembers how `_init_weights` should fill it.

    The rule stands on the leaf because transformers skips containers of models defined outside the library when it
    initialises weights that a checkpoint lacks.
    """
    layer: Any = nn.Linear(inputs, outputs)  # Any: torch declares all attributes of a module as tensors
    layer.init_rule = init_rule
    return layer


class SemiDetrMLP(nn.Module):
    """A chain of linear layers with ReLU between them; the last one starts at zero if `zero_last`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, num_layers: int, zero_last: bool = False):
        super().__init__()
        widths = [inputs] + [hidden] * (num_layers - 1) + [outputs]
        self.layers = nn.ModuleList(
            linear(widths[i], widths[i + 1], "zero" if zero_last and i == num_layers - 1 else None)
            for i in range(num_layers)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        for layer in self.layers[:-1]:
            hidden_states = F.relu(layer(hidden_states))
        return self.layers[-1](hidden_states)


class SemiDetrFeedForward(nn.Module):
    """The two-layer network after each attention."""

    def __init__(self, config: SemiDetrConfig, hidden: int):
        super().__init__()
        self.fc1 = linear(config.d_model, hidden)
        self.fc2 = linear(hidden, config.d_model)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, Q, D) to (B, Q, D)."""
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))


class SemiDetrDeformableAttention(nn.Module):
    """Attention of queries to a few learned points around their reference, on every level."""

    def __init__(self, config: SemiDetrConfig, num_heads: int, num_points: int):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, config.num_feature_levels, num_points
        samples = num_heads * self.num_levels * num_points
        sampling_offsets: Any = linear(config.d_model, samples * 2, "sampling_grid")
        sampling_offsets.grid_shape = (num_heads, self.num_levels, num_points)
        self.sampling_offsets = sampling_offsets
        self.attention_weights = linear(config.d_model, samples, "zero")
        self.value_proj = linear(config.d_model, config.d_model)
        self.output_proj = linear(config.d_model, config.d_model)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        memory: Tensor,
        token_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden_states: (B, Q, D), position added.
            memory: (B, S, D).
            token_mask: (B, S) bool, True = real; other tokens count as zero.
            reference_points: (B, Q, L, 2) points or (B, Q, L, 4) boxes, as shares of the padded level.
            spatial_shapes: (height, width) of each level.

        Returns:
            (B, Q, D) and the attention weights (B, Q, heads, L, points).
        """
        batch, queries, width = hidden_states.shape
        shape = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory).masked_fill(~token_mask[..., None], 0.0)
        value = value.view(batch, -1, self.num_heads, width // self.num_heads)
        offsets = self.sampling_offsets(hidden_states).float().view(*shape, 2)
        weights = self.attention_weights(hidden_states).float().view(*shape[:3], -1).softmax(-1).view(shape)
        points = reference_points[:, :, None, :, None, :2]
        if reference_points.shape[-1] == 2:
            sizes = torch.tensor(spatial_shapes).flip(-1)  # (L, 2): width, height
            sizes = sizes.to(offsets.device, non_blocking=True)
            locations = points + offsets / sizes[:, None]
        else:
            locations = points + offsets / self.num_points * reference_points[:, :, None, :, None, 2:] * 0.5
        output = multi_scale_deformable_attention(
            value, spatial_shapes, sampling_locations=locations, attention_weights=weights
        )
        return self.output_proj(output.to(hidden_states.dtype)), weights


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention that also returns its weights; the signature is that of transformers' attention interface."""
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1).to(query.dtype), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SemiDetrSelfAttention(nn.Module):
    """Attention among the queries; positions are added to queries and keys, not to values."""

    def __init__(self, config: SemiDetrConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.d_model // config.decoder_attention_heads
        self.is_causal = False
        self.q_proj = linear(config.d_model, config.d_model)
        self.k_proj = linear(config.d_model, config.d_model)
        self.v_proj = linear(config.d_model, config.d_model)
        self.o_proj = linear(config.d_model, config.d_model)

    def forward(
        self, hidden_states: Tensor, *, positions: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B, N, D).
            positions: (B, N, D).
            attention_mask: (1, 1, N, N) float to add to the scores, or None.
            **kwargs: passed to the attention implementation.

        Returns:
            (B, N, D) and, with the eager implementation, weights (B, heads, N, N).
        """
        batch, queries, width = hidden_states.shape
        with_position = hidden_states + positions

        def heads(tensor: Tensor) -> Tensor:
            return tensor.view(batch, queries, -1, self.head_dim).transpose(1, 2)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            heads(self.q_proj(with_position)),
            heads(self.k_proj(with_position)),
            heads(self.v_proj(hidden_states)),
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(output.reshape(batch, queries, width)), weights


class SemiDetrEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention of the tokens, then a feed-forward network; norms behind."""

    def __init__(self, config: SemiDetrConfig):
        super().__init__()
        self.self_attn = SemiDetrDeformableAttention(config, config.encoder_attention_heads, config.encoder_n_points)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.mlp = SemiDetrFeedForward(config, config.encoder_ffn_dim)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        positions: Tensor,
        token_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        **kwargs: Any,
    ) -> Tensor:
        """Map (B, S, D) to (B, S, D); see `SemiDetrEncoder.forward`."""
        attended, _ = self.self_attn(
            hidden_states + positions,
            memory=hidden_states,
            token_mask=token_mask,
            reference_points=reference_points,
            spatial_shapes=spatial_shapes,
        )
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class SemiDetrDecoderLayer(GradientCheckpointingLayer):
    """Self-attention of the queries, deformable attention to the image, feed-forward network; norms behind."""

    def __init__(self, config: SemiDetrConfig):
        super().__init__()
        self.self_attn = SemiDetrSelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn = SemiDetrDeformableAttention(config, config.decoder_attention_heads, config.decoder_n_points)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.mlp = SemiDetrFeedForward(config, config.decoder_ffn_dim)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None,
        memory: Tensor,
        token_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        **kwargs: Any,
    ) -> Tensor:
        """Map (B, N, D) to (B, N, D); see `SemiDetrDecoder.forward`."""
        attended, _ = self.self_attn(hidden_states, positions=positions, attention_mask=attention_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        attended, _ = self.cross_attn(
            hidden_states + positions,
            memory=memory,
            token_mask=token_mask,
            reference_points=reference_points,
            spatial_shapes=spatial_shapes,
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


class SemiDetrPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what the library needs to know about all Semi-DETR models."""

    config: SemiDetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["SemiDetrEncoderLayer", "SemiDetrDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    # Denoising needs an arbitrary self-attention mask.
    _supports_flash_attn = False
    _supports_flex_attn = False

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model, see `PreTrainedModel.from_pretrained`, and freeze what its configuration freezes.

        Loading replaces parameters by new ones, all of which require gradients.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, SemiDetrModel):
                freeze_first_stages(module.backbone, module.config.num_frozen_backbone_stages)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        """Fill one leaf (a module); `init` skips what a checkpoint has already filled."""
        super()._init_weights(module)
        rule = getattr(module, "init_rule", None)
        if rule == "zero":
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif rule == "sampling_grid":
            init.zeros_(module.weight)
            init.copy_(module.bias, sampling_grid(*module.grid_shape).flatten())
        elif rule == "class_prior":
            # Every label starts at a probability of 0.01 (arXiv 1708.02002, section 4.1).
            init.constant_(module.bias, -math.log(99))
        elif rule == "unit_normal":
            init.normal_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Conv2d)) or rule == "xavier":
            init.xavier_uniform_(module.weight)


def sampling_grid(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Return initial offsets (heads, levels, points, 2): one direction per head, point i lies i cells away."""
    angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().max(-1, keepdim=True).values
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    return (directions[:, None, None] * steps[:, None]).expand(-1, num_levels, -1, -1).contiguous()


def embedding(rows: int, width: int, init_rule: str) -> nn.Embedding:
    """Return a table that remembers how `_init_weights` should fill it."""
    table: Any = nn.Embedding(rows, width)
    table.init_rule = init_rule
    return table


class SemiDetrEncoder(SemiDetrPreTrainedModel):
    """Layers of deformable self-attention over the tokens of all levels."""

    _can_record_outputs = {
        "hidden_states": SemiDetrEncoderLayer,
        "attentions": OutputRecorder(SemiDetrDeformableAttention, layer_name="self_attn", index=1),
    }

    def __init__(self, config: SemiDetrConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(SemiDetrEncoderLayer(config) for _ in range(config.encoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        positions: Tensor,
        token_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode.

        Args:
            inputs_embeds: (B, S, D).
            positions: (B, S, D), added to queries, not to values.
            token_mask: (B, S) bool, True = real image.
            reference_points: (B, S, L, 2), each token's centre as a share of every padded level.
            spatial_shapes: (height, width) of each level.
            **kwargs: `output_hidden_states`, `output_attentions`.
        """
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions, token_mask, reference_points, spatial_shapes)
        return BaseModelOutput(last_hidden_state=hidden_states)


class SemiDetrDecoder(SemiDetrPreTrainedModel):
    """Layers that turn queries into boxes, each refining the box of the one before."""

    _can_record_outputs = {
        "hidden_states": SemiDetrDecoderLayer,
        "attentions": OutputRecorder(SemiDetrSelfAttention, layer_name="self_attn", index=1),
        "cross_attentions": OutputRecorder(SemiDetrDeformableAttention, layer_name="cross_attn", index=1),
    }

    def __init__(self, config: SemiDetrConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(SemiDetrDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.position_head = SemiDetrMLP(2 * config.d_model, config.d_model, config.d_model, num_layers=2)
        # One head for refinement and prediction of all layers, as in official DINO, whose checkpoints hold copies.
        self.box_head = SemiDetrMLP(config.d_model, config.d_model, 4, num_layers=3, zero_last=True)
        self.post_init()

    def refine(self, hidden_states: Tensor, reference_points: Tensor) -> Tensor:
        """Move boxes by the box head: (B, N, D) and (B, N, 4) cxcywh -> (B, N, 4) cxcywh, float32."""
        logits = inverse_sigmoid(reference_points, eps=self.config.inverse_sigmoid_eps)
        return (self.box_head(hidden_states).float() + logits).sigmoid()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        reference_points: Tensor,
        attention_mask: Tensor | None,
        memory: Tensor,
        token_mask: Tensor,
        valid_ratios: Tensor,
        spatial_shapes: list[tuple[int, int]],
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemiDetrDecoderOutput:
        """Decode.

        Args:
            inputs_embeds: (B, N, D), content of the queries.
            reference_points: (B, N, 4) float32, their first boxes, cxcywh normalised by the unpadded image.
            attention_mask: (1, 1, N, N) float to add to the self-attention scores, or None.
            memory: (B, S, D).
            token_mask: (B, S) bool, True = real image.
            valid_ratios: (B, L, 2).
            spatial_shapes: (height, width) of each level.
            **kwargs: `output_hidden_states`, `output_attentions`.
        """
        hidden_states = inputs_embeds
        to_padded = valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        starts, outputs = [reference_points], []
        for layer in self.layers:
            padded = reference_points[:, :, None] * to_padded  # (B, N, L, 4)
            positions = self.position_head(
                box_position_embedding(padded[:, :, 0], self.config.d_model).to(hidden_states.dtype)
            )
            hidden_states = layer(
                hidden_states, positions, attention_mask, memory, token_mask, padded, spatial_shapes, **kwargs
            )
            refined = self.refine(hidden_states, reference_points)
            reference_points = refined.detach()
            starts.append(refined)
            outputs.append(self.layer_norm(hidden_states))
        return SemiDetrDecoderOutput(
            last_hidden_state=outputs[-1],
            intermediate_hidden_states=torch.stack(outputs, dim=1),
            intermediate_reference_points=torch.stack(starts[:-1], dim=1),
        )


class SemiDetrModel(SemiDetrPreTrainedModel):
    """Backbone, encoder, query selection and decoder, without the class head."""

    def __init__(self, config: SemiDetrConfig):
        super().__init__(config)
        backbone: Any = build_backbone(config)
        self.backbone = backbone
        self.input_proj = build_input_projections(config, backbone.channels)
        self.level_embedding = embedding(config.num_feature_levels, config.d_model, "unit_normal")
        self.encoder = SemiDetrEncoder(config)
        self.proposal_proj = linear(config.d_model, config.d_model)
        self.proposal_norm = nn.LayerNorm(config.d_model)
        self.proposal_class_head = linear(config.d_model, config.num_labels, "class_prior")
        self.proposal_box_head = SemiDetrMLP(config.d_model, config.d_model, 4, num_layers=3, zero_last=True)
        self.query_content = embedding(config.num_queries, config.d_model, "xavier")
        self.decoder = SemiDetrDecoder(config)
        self.post_init()

    def project(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the pyramid before the encoder: L tensors (B, D, H_l, W_l)."""
        features = list(self.backbone(pixel_values).feature_maps)
        # timm says so where channels stand last; shapes cannot tell, a level may be as wide as it has channels.
        if getattr(getattr(self.backbone, "_backbone", None), "output_fmt", "NCHW") == "NHWC":
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        pyramid = [projection(feature) for projection, feature in zip(self.input_proj, features, strict=False)]
        source = features[-1]  # extra levels start from the raw last feature, not from its projection
        for projection in self.input_proj[len(features) :]:
            source = projection(source)
            pyramid.append(source)
        return pyramid

    def encode(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **kwargs: Any) -> EncodedImages:
        """Run everything up to the query selection.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 = real pixel; None = all real.
            **kwargs: `output_hidden_states`, `output_attentions`.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
        pyramid = self.project(pixel_values.to(self.level_embedding.weight.dtype))
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        masks = [F.interpolate(pixel_mask[None].float(), size=shape)[0].bool() for shape in spatial_shapes]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)  # (B, S, D)
        positions = [
            sine_position_embedding(mask, self.config.d_model, self.config.position_embedding_temperature).flatten(
                1, 2
            )
            + self.level_embedding.weight[i]
            for i, mask in enumerate(masks)
        ]
        valid_ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)  # (B, L, 2)
        centers = torch.cat([token_centers(mask) for mask in masks], dim=1)  # (B, S, 2)
        token_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        encoded = self.encoder(
            tokens,
            positions=torch.cat(positions, dim=1).to(tokens.dtype),
            token_mask=token_mask,
            reference_points=centers[:, :, None] * valid_ratios[:, None],
            spatial_shapes=spatial_shapes,
            **kwargs,
        )
        logits, box_logits = self.select_proposals(
            encoded.last_hidden_state, token_mask=token_mask, centers=centers, spatial_shapes=spatial_shapes
        )
        return EncodedImages(
            pyramid=pyramid,
            memory=encoded.last_hidden_state,
            token_mask=token_mask,
            spatial_shapes=spatial_shapes,
            valid_ratios=valid_ratios,
            proposal_logits=logits,
            proposal_box_logits=box_logits,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def select_proposals(
        self, memory: Tensor, *, token_mask: Tensor, centers: Tensor, spatial_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Choose the tokens whose best class scores highest; each proposes a box around its centre.

        A token whose box would start within 1 % of the border or as padding proposes nothing: its memory is zeroed and
        its box logit infinite. It can still be chosen when fewer tokens than queries are left.

        Args:
            memory: (B, S, D).
            token_mask: (B, S) bool.
            centers: (B, S, 2), shares of the real image.
            spatial_shapes: (height, width) of each level.

        Returns:
            Class logits (B, Q, C) and box logits (B, Q, 4) float32 of the min(num_queries, S) best tokens, best first.

        Source: Deformable DETR, appendix A.4; DINO, section 3.4 (mixed query selection).
        """
        sides = torch.cat([centers.new_full((h * w,), 0.05 * 2**i) for i, (h, w) in enumerate(spatial_shapes)])
        proposals = torch.cat([centers, sides[None, :, None].expand(centers.shape[0], -1, 2)], dim=-1)  # (B, S, 4)
        usable = ((proposals > 0.01) & (proposals < 0.99)).all(-1) & token_mask
        proposal_logits = torch.log(proposals / (1 - proposals)).masked_fill(~usable[..., None], float("inf"))
        memory = self.proposal_norm(self.proposal_proj(memory.masked_fill(~usable[..., None], 0.0)))
        class_logits = self.proposal_class_head(memory)  # (B, S, C)
        num_queries = min(self.config.num_queries, memory.shape[1])
        best = class_logits.max(-1).values.float().topk(num_queries, dim=1).indices[..., None]  # (B, Q, 1)
        chosen = memory.gather(1, best.expand(-1, -1, memory.shape[-1]))
        box_logits = self.proposal_box_head(chosen).float() + proposal_logits.gather(1, best.expand(-1, -1, 4))
        return class_logits.gather(1, best.expand(-1, -1, class_logits.shape[-1])), box_logits

    def decode(
        self, encoded: EncodedImages, extra_queries: DecoderQueries | None = None, **kwargs: Any
    ) -> SemiDetrDecoderOutput:
        """Decode encoded images, optionally with extra queries in front of the matching ones.

        Args:
            encoded: from `encode`.
            extra_queries: N queries in groups that do not see each other.
            **kwargs: `output_hidden_states`, `output_attentions`.
        """
        batch, num_queries, _ = encoded.proposal_box_logits.shape
        content = self.query_content.weight[:num_queries].expand(batch, -1, -1)
        matching = DecoderQueries(content, encoded.proposal_box_logits.detach(), (num_queries,))
        mask = None
        if extra_queries is not None and len(extra_queries):
            blocked = build_attention_mask(extra_queries.group_sizes, num_queries, content.device)
            mask = torch.zeros(blocked.shape, dtype=content.dtype, device=content.device)
            mask = mask.masked_fill(blocked, torch.finfo(content.dtype).min)[None, None]
        queries = matching if extra_queries is None else cat(extra_queries, matching)
        return self.decoder(
            queries.content.to(encoded.memory.dtype),
            reference_points=queries.reference_logits.float().sigmoid(),
            attention_mask=mask,
            memory=encoded.memory,
            token_mask=encoded.token_mask,
            valid_ratios=encoded.valid_ratios,
            spatial_shapes=encoded.spatial_shapes,
            **kwargs,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemiDetrModelOutput:
        """Encode and decode.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 = real pixel; None = all real.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        encoded = self.encode(pixel_values, pixel_mask, **kwargs)
        decoded = self.decode(encoded, **kwargs)
        return SemiDetrModelOutput(**describe(encoded, decoded))


def describe(encoded: EncodedImages, decoded: SemiDetrDecoderOutput) -> dict[str, Any]:
    """Return the fields that the outputs of both models share, without extra queries in front."""
    num_queries = encoded.proposal_logits.shape[1]
    return {
        "last_hidden_state": decoded["last_hidden_state"][:, -num_queries:],
        "intermediate_hidden_states": decoded["intermediate_hidden_states"][:, :, -num_queries:],
        "intermediate_reference_points": decoded["intermediate_reference_points"][:, :, -num_queries:],
        "encoder_logits": encoded.proposal_logits,
        "encoder_pred_boxes": encoded.proposal_box_logits.sigmoid(),
        "encoder_last_hidden_state": encoded.memory,
        "decoder_hidden_states": decoded.hidden_states,
        "decoder_attentions": decoded.attentions,
        "cross_attentions": decoded.cross_attentions,
        "encoder_hidden_states": encoded.encoder_hidden_states,
        "encoder_attentions": encoded.encoder_attentions,
    }


def build_input_projections(config: SemiDetrConfig, channels: list[int]) -> nn.ModuleList:
    """Return one convolution and group norm per level: 1x1 for the backbone's, 3x3 with stride 2 for those beyond.

    Raises:
        ValueError: if the backbone returns more levels than the model has.
    """
    if len(channels) > config.num_feature_levels:
        raise ValueError(
            f"the backbone returns {len(channels)} levels, more than num_feature_levels = {config.num_feature_levels}"
        )
    convolutions = [nn.Conv2d(width, config.d_model, kernel_size=1) for width in channels]
    for i in range(config.num_feature_levels - len(channels)):
        width = channels[-1] if i == 0 else config.d_model
        convolutions.append(nn.Conv2d(width, config.d_model, kernel_size=3, stride=2, padding=1))
    return nn.ModuleList(
        nn.Sequential(convolution, nn.GroupNorm(config.group_norm_groups, config.d_model))
        for convolution in convolutions
    )


class SemiDetrForObjectDetection(SemiDetrPreTrainedModel):
    """The complete detector: `SemiDetrModel`, the class head, denoising and the supervised loss."""

    accepts_loss_kwargs = False

    def __init__(self, config: SemiDetrConfig):
        super().__init__(config)
        self.model = SemiDetrModel(config)
        self.class_head = linear(config.d_model, config.num_labels, "class_prior")
        self.label_embedding = embedding(
            config.label_embedding_rows or config.num_labels, config.d_model, "unit_normal"
        )
        matcher = HungarianMatcher(
            class_cost=config.class_cost,
            bbox_cost=config.bbox_cost,
            giou_cost=config.giou_cost,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
            eps=config.matcher_eps,
        )
        # Not called loss_function: transformers ignores a module under that name and uses a language-model loss.
        self.criterion = SetCriterion(
            matcher,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
            class_agnostic_encoder=config.class_agnostic_encoder_loss,
            auxiliary=config.auxiliary_loss,
            class_normalizer=config.class_loss_normalizer,
            denoise_empty_images=config.denoise_empty_images,
        )
        self.post_init()

    def encode(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **kwargs: Any) -> EncodedImages:
        """Run everything up to the query selection, see `SemiDetrModel.encode`."""
        return self.model.encode(pixel_values, pixel_mask, **kwargs)

    def decode(
        self,
        encoded: EncodedImages,
        denoising: DenoisingQueries | None = None,
        *,
        extra_queries: DecoderQueries | None = None,
        **kwargs: Any,
    ) -> tuple[DetectorPredictions, SemiDetrDecoderOutput]:
        """Decode encoded images into predictions of every layer.

        Args:
            encoded: from `encode`.
            denoising: queries with known answers, or None.
            extra_queries: N queries put before all others, of which no prediction is made; their states are the first
                N of the decoder output.
            **kwargs: `output_hidden_states`, `output_attentions`.

        Returns:
            The predictions, matching and denoising queries apart, and the plain decoder output.
        """
        given = [extra_queries, None if denoising is None else denoising.queries]
        in_front = [queries for queries in given if queries is not None]
        decoded = self.model.decode(encoded, cat(*in_front) if in_front else None, **kwargs)
        first = 0 if extra_queries is None else len(extra_queries)
        hidden_states = decoded.intermediate_hidden_states.transpose(0, 1)[:, :, first:]  # (P, B, N + Q, D)
        starts = decoded.intermediate_reference_points.transpose(0, 1)[:, :, first:]
        logits = self.class_head(hidden_states)
        boxes = self.model.decoder.refine(hidden_states, starts)
        split = logits.shape[2] - encoded.proposal_logits.shape[1]
        predictions = DetectorPredictions(
            logits=logits[:, :, split:],
            boxes=boxes[:, :, split:],
            encoder_logits=encoded.proposal_logits,
            encoder_boxes=encoded.proposal_box_logits.sigmoid(),
            denoising_logits=logits[:, :, :split],
            denoising_boxes=boxes[:, :, :split],
            denoising=denoising,
        )
        return predictions, decoded

    def denoising_queries(self, targets: list[dict[str, Tensor]]) -> DenoisingQueries | None:
        """Return noised copies of the targets, or None if the configuration switches denoising off."""
        config = self.config
        if config.num_denoising_queries == 0:
            return None
        max_boxes = max((len(target["class_labels"]) for target in targets), default=0)
        noise = draw_noise(
            len(targets),
            num_denoising_groups(config.num_denoising_queries, max_boxes),
            max_boxes,
            num_labels=config.num_labels,
            label_noise=config.denoising_label_noise,
            device=self.device,
        )
        return build_denoising_queries(
            targets,
            self.label_embedding,
            noise=noise,
            box_noise=config.denoising_box_noise,
            eps=config.inverse_sigmoid_eps,
        )

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of named losses, () float32."""
        config = self.config
        weights = {
            name: loss_weight(
                name,
                class_weight=config.class_loss_coefficient,
                bbox_weight=config.bbox_loss_coefficient,
                giou_weight=config.giou_loss_coefficient,
            )
            for name in losses
        }
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemiDetrObjectDetectionOutput:
        """Detect objects, and compare with `labels` if given.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 = real pixel; None = all real.
            labels: per image `class_labels` (G,) int64 and `boxes` (G, 4) cxcywh normalised by the unpadded image; G
                may be 0 and may exceed the number of queries.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        encoded = self.encode(pixel_values, pixel_mask, **kwargs)
        # Only while training: at evaluation the loss must not depend on random noise.
        denoising = self.denoising_queries(labels) if self.training and labels is not None else None
        predictions, decoded = self.decode(encoded, denoising, **kwargs)
        loss, loss_dict, auxiliary_outputs = None, None, None
        if labels is not None:
            loss_dict = self.criterion(predictions, labels, average_num_boxes(labels, self.device))
            loss = self.weigh(loss_dict)
            auxiliary_outputs = [
                {"logits": logits, "pred_boxes": boxes}
                for logits, boxes in zip(predictions.logits[:-1], predictions.boxes[:-1], strict=True)
            ]
        return SemiDetrObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=predictions.logits[-1],
            pred_boxes=predictions.boxes[-1],
            auxiliary_outputs=auxiliary_outputs,
            **describe(encoded, decoded),
        )


# Pipelines log an error of many lines for every class that is not in this table, although it works. The line stands
# here and not where the classes are registered, so that code that was loaded from beside the weights brings it along.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["semidetr"] = "SemiDetrForObjectDetection"

__all__ = ["SemiDetrForObjectDetection", "SemiDetrModel", "SemiDetrPreTrainedModel"]
