"""Tokens that become sinks in the middle of a model: planted ones are found, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from vlmopt.attention_fix.secondary_sinks import SinkTrace, massive_band

DEPTH, TOKENS, HIDDEN = 24, 20, 128
RISE, END = 3, 22  # the first token is massive in the outputs of layers 3..21


def states(seed=0, batch=1, bos=0, planted=(), tokens=TOKENS, depth=DEPTH, sign=1.0):
    """[L, B, N, D]: noise, a first token that is massive for a while, and (token, from, layers) in its direction."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(depth, batch, tokens, HIDDEN, generator=generator)
    direction = torch.randn(HIDDEN, generator=generator) * 5
    hidden[RISE:END, :, bos] += direction * 20
    for token, start, layers in planted:
        hidden[start : start + layers, :, token] += sign * direction * 3
    return hidden


def lives(hidden, valid=None, candidates=2):
    valid = torch.ones(hidden.shape[1:3], dtype=torch.bool) if valid is None else valid
    trace = SinkTrace(valid, candidates)
    for layer in hidden:
        trace.add(layer)
    return trace.lives()


PLANTED = ((4, 8, 7), (9, 8, 7), (11, 12, 5), (6, 10, 3), (15, 4, 16))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_planted_sinks_are_found_with_their_lifetimes(sign, dtype):
    found = lives(states(planted=PLANTED, sign=sign).to(dtype))
    assert found.first_token.tolist() == [0]
    assert found.band.tolist() == [[RISE, END]]
    start = dict.fromkeys(range(TOKENS), -1) | {token: first for token, first, _ in PLANTED}
    lifetime = dict.fromkeys(range(TOKENS), 0) | {token: layers for token, _, layers in PLANTED}
    assert found.start[0].tolist() == list(start.values())
    assert found.lifetime[0].tolist() == list(lifetime.values())
    assert found.primary[0].nonzero()[:, 0].tolist() == [15]  # 16 of 24 layers
    assert found.secondary[0].nonzero()[:, 0].tolist() == [4, 9, 11]  # 3 layers are noise
    assert found.levels(0) == {(8, 7): [4, 9], (12, 5): [11]}
    assert found.cosine.shape == (DEPTH, 1, TOKENS)
    assert found.cosine[RISE:END, 0, 0].sub(1).abs().max() < 1e-2


def test_likeness_outside_the_band_does_not_count():
    """A token that always equals the first is a sink only while that is massive."""
    hidden = states()
    hidden[:, :, 7] = hidden[:, :, 0]
    found = lives(hidden)
    assert found.start[0, 7] == RISE
    assert found.lifetime[0, 7] == END - RISE


def test_scale_does_not_matter():
    hidden = states(planted=PLANTED)
    want = lives(hidden)
    for scale in (1e-3, 1e4):
        got = lives(hidden * scale)
        assert torch.equal(got.lifetime, want.lifetime)
        assert torch.equal(got.start, want.start)
        assert torch.equal(got.band, want.band)


@pytest.mark.parametrize("hidden", [64, 256])
def test_random_states_give_no_flags(hidden):
    generator = torch.Generator().manual_seed(1)
    found = lives(torch.randn(DEPTH, 3, 200, hidden, generator=generator))
    assert found.lifetime.eq(0).all()
    assert found.levels(0) == {}


def test_padding_is_never_flagged():
    hidden = states(planted=PLANTED, batch=3)
    hidden[:, 1, 2] = hidden[:, 0, 0]
    hidden[:, 1, :2] = hidden[:, 1, 2:3]  # left padding in the very direction of the first token
    hidden[:, 2, 15] = hidden[:, 2, 0]  # right padding
    valid = torch.ones(3, TOKENS, dtype=torch.bool)
    valid[1, :2] = valid[2, 15:] = False
    found = lives(hidden, valid)
    assert found.first_token.tolist() == [0, 2, 0]
    assert found.lifetime[~valid].eq(0).all()
    assert found.cosine[:, ~valid].eq(0).all()
    for sample in range(3):
        assert found.levels(sample) == {(8, 7): [4, 9], (12, 5): [11]}


def test_padding_is_never_the_first_token():
    hidden = states()
    hidden[:, :, 4] *= 1000
    for valid in (torch.arange(TOKENS) == 3, torch.arange(TOKENS) == TOKENS - 1):
        assert lives(hidden, valid[None]).first_token.item() == valid.nonzero().item()


def test_samples_do_not_know_one_another():
    first, second = states(0, planted=PLANTED), states(1, planted=((3, 6, 6),))
    both = lives(torch.cat([first, second], 1))
    assert both.levels(0) == lives(first).levels(0)
    assert both.levels(1) == lives(second).levels(0) == {(6, 6): [3]}


def test_the_first_token_may_be_a_later_one():
    """With a chat template the third token may be the one with massive activations."""
    hidden = states(bos=2, planted=((1, 8, 7), (9, 8, 7)))
    assert lives(hidden, candidates=3).first_token.tolist() == [2]
    assert lives(hidden, candidates=3).levels(0) == {(8, 7): [9]}  # only tokens behind it
    assert lives(hidden, candidates=2).first_token.tolist() != [2]


def test_massive_until_the_end():
    """Without a fall the band goes on to the last layer, however the noise runs."""
    norms = torch.tensor([1.0, 1.2, 100, 99.5, 100, 99, 99.2])[:, None]
    assert [int(bound) for bound in massive_band(norms)] == [2, 7]
    norms[-1] = 3
    assert [int(bound) for bound in massive_band(norms)] == [2, 6]
    assert [int(bound) for bound in massive_band(torch.tensor([[1.0], [9.0]]))] == [1, 2]


def test_no_hidden_states_are_kept():
    trace = SinkTrace(torch.ones(1, TOKENS, dtype=torch.bool), 2)
    for layer in states():
        trace.add(layer)
    kept = sum(tensor.numel() for tensor in (*trace.cosines, *trace.norms))
    assert kept == DEPTH * TOKENS * 3  # cosine with either candidate, and norm
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 4 for tensor in (*trace.cosines, *trace.norms))


def test_refusals():
    trace = SinkTrace(torch.ones(1, TOKENS, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not fit valid"):
        trace.add(torch.zeros(1, 5, 8))
    trace.add(states()[0])
    with pytest.raises(ValueError, match="two at least"):
        trace.lives()
