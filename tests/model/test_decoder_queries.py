"""Groups of decoder queries do not see each other."""

import pytest
import torch
from recorded import load_recorded

from semidetr_hf.model.decoder_queries import DecoderQueries, build_attention_mask, cat


def queries(group_sizes, batch=2, fill=1.0):
    count = sum(group_sizes)
    return DecoderQueries(torch.full((batch, count, 3), fill), torch.full((batch, count, 4), fill), group_sizes)


def test_mask_by_hand():
    # Two consistency copies of one slot, two denoising groups of two slots, two matching queries; 1 = blocked. Every
    # group sees itself and the matching queries; these see only themselves.
    rows = ("01111100", "10111100", "11001100", "11001100", "11110000", "11110000", "11111100", "11111100")
    expected = torch.tensor([[int(digit) for digit in row] for row in rows]).bool()
    assert torch.equal(build_attention_mask((1, 1, 2, 2), 2, "cpu"), expected)


def test_mask_without_groups_blocks_nothing():
    assert not build_attention_mask((), 5, "cpu").any()
    assert build_attention_mask((), 0, "cpu").shape == (0, 0)


@pytest.mark.parametrize("case", [0, 1])
def test_recorded_denoising_mask(case):
    recorded = load_recorded("query_masks.npz")["denoising"][case]
    expected = recorded["dino"]["attn_mask"]
    groups, pad = int(recorded["dino"]["num_groups"]), int(recorded["dino"]["pad_size"])
    assert torch.equal(build_attention_mask((pad // groups,) * groups, 6, "cpu"), expected)


@pytest.mark.parametrize("case", [0, 1])
def test_recorded_mask_of_consistency_and_denoising(case):
    recorded = load_recorded("query_masks.npz")["consistency"][case]
    sizes = ()
    for kind in ("1", "2"):
        groups, pad = int(recorded[f"num_dn_group_{kind}"]), int(recorded[f"pad_size_{kind}"])
        sizes += (pad // groups,) * groups
    assert torch.equal(build_attention_mask(sizes, 6, "cpu"), recorded["attn_mask"])


def test_cat_keeps_groups_apart():
    joined = cat(queries((1, 1), fill=1), queries((2,), fill=2), queries((), fill=3))
    assert joined.group_sizes == (1, 1, 2)
    assert len(joined) == 4
    assert joined.content[:, :, 0].tolist() == [[1, 1, 2, 2]] * 2
    assert joined.reference_logits.shape == (2, 4, 4)


def test_group_of_matching_queries_is_the_last_group():
    """The mask of groups (a, b) in front of matching queries differs from one more group only in who sees them."""
    mask = build_attention_mask((2, 3), 4, "cpu")
    as_group = build_attention_mask((2, 3, 4), 0, "cpu")
    assert torch.equal(mask[:, :5], as_group[:, :5])
    assert not mask[:, 5:].any() and as_group[:5, 5:].all()


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"group_sizes \(2, 2\) add up to 4, but content has 3 queries"):
        DecoderQueries(torch.zeros(1, 3, 8), torch.zeros(1, 3, 4), (2, 2))
    with pytest.raises(ValueError, match="at least one DecoderQueries"):
        cat()
