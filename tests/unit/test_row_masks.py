"""What a correction is told of masks: answers are kept per view, and masks of single heads count for themselves."""

from __future__ import annotations

import pytest
import torch

from tests.support.row_views import seen
from vlmopt.attention_fix import AttentionFusion, GeneratedText, HeadGuided, ImageBoost
from vlmopt.attention_fix.correct_rows import correct_rows

HEADS, ROWS, KEYS = 3, 4, 7
IMAGE, SYSTEM, GENERATED = (1, 2, 3), (0,), (5, 6)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(allowed: torch.Tensor):
    return seen(KEYS, rows=ROWS, image=IMAGE, system=SYSTEM, generated=GENERATED, allowed=allowed)


def by_head(correction, row: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """One row [H, K] after the edit, key by key."""
    out = row.clone()
    for h in range(HEADS):
        for k in range(KEYS):
            z, see = row[h, k], bool(allowed[h, k])
            if isinstance(correction, HeadGuided) and k in IMAGE and see:
                out[h, k] = z + 0.5 * row[allowed[:, k], k].abs().mean()
            if isinstance(correction, ImageBoost) and k in IMAGE and see:
                out[h, k] = z + 0.4 * z.abs()
            if isinstance(correction, GeneratedText) and k in GENERATED and see:
                out[h, k] = z + 0.8 * z.abs()
            if isinstance(correction, AttentionFusion) and see:
                out[h, k] = z * (1.15 if k in IMAGE else 0.95 if k in SYSTEM else 1.0)
    return out


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("correction", [HeadGuided(), ImageBoost(), GeneratedText(), AttentionFusion()])
def test_edits_follow_the_mask_of_each_head(correction, heads):
    allowed = (random(1, heads, ROWS, KEYS, seed=1) > -0.5).expand(1, heads, ROWS, KEYS)
    values = random(1, HEADS, ROWS, KEYS, seed=2)
    after, edited = correction.edit(values, view(allowed))
    each = allowed.expand(1, HEADS, ROWS, KEYS)
    for r in range(ROWS):
        want = by_head(correction, values[0, :, r], each[0, :, r])
        torch.testing.assert_close(after[0, :, r], want, rtol=0, atol=1e-12)
    keys = torch.tensor(GENERATED if isinstance(correction, GeneratedText) else IMAGE)
    assert torch.equal(edited, each[..., keys].any(-1))


@pytest.mark.parametrize("correction", [HeadGuided(), ImageBoost(), AttentionFusion()])
def test_answers_are_not_carried_from_one_piece_of_rows_to_the_next(correction):
    allowed = torch.ones(ROWS, KEYS, dtype=torch.bool).tril(KEYS - ROWS)[None, None]
    query, key, value = (
        random(1, HEADS, ROWS, 4, seed=3),
        random(1, HEADS, KEYS, 4, seed=4),
        random(1, HEADS, KEYS, 4, seed=5),
    )
    whole = correct_rows(query, key, value, allowed, 0.5, [(correction, view(allowed))])
    pieces = correct_rows(query, key, value, allowed, 0.5, [(correction, view(allowed))], budget=1)
    torch.testing.assert_close(pieces[0], whole[0], rtol=0, atol=1e-12)
    assert torch.equal(pieces[1], whole[1])


def test_a_question_is_answered_once():
    one = view(torch.ones(1, 1, ROWS, KEYS, dtype=torch.bool))
    assert one.sees(one.image) is one.sees(one.image)
    assert one.sees(one.image) is not one.sees(one.system)
    assert one.indicator(one.image, torch.float64).dtype == torch.float64
    assert one.indicator(one.image, torch.float32).dtype == torch.float32
