"""The depth transformer's steps against its parallel form, and what each of its inputs does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from moshi_server.model.depformer import Depformer, DepformerSpec
from moshi_server.model.embedding import ZERO_TOKEN, TokenEmbedding
from moshi_server.model.transformer import TransformerSpec

SHAPE = TransformerSpec(32, 4, 2, 96, context=6, gating="silu", positional_embedding="none")
SPEC = DepformerSpec(6, SHAPE, schedule=(0, 1, 2, 2, 3, 3), low_rank=8)
SPECS = [
    SPEC,
    DepformerSpec(4, SHAPE),
    DepformerSpec(4, dataclasses.replace(SHAPE, kv_repeat=2, norm="layer_norm"), shared_input=True, norms="rms_norm"),
    DepformerSpec(3, SHAPE, schedule=(0, 1, 1), widths=(40, 24), norms="layer_norm"),
    DepformerSpec(3, dataclasses.replace(SHAPE, gating="none"), schedule=(0, 0, 0), shared_input=True),
]


def build(spec: DepformerSpec, *, two_streams: bool = False) -> Depformer:
    torch.manual_seed(3)
    return Depformer(spec, 24, 12, 17, two_text_streams=two_streams).eval().requires_grad_(False)


def greedy(logits: Tensor, codebook: int) -> Tensor:
    return logits.argmax(-1)


def inputs(rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 24, generator=generator), torch.randint(12, (rows,), generator=generator)


@pytest.mark.parametrize("spec", SPECS)
def test_codebook_by_codebook_equals_all_at_once(spec: DepformerSpec) -> None:
    model = build(spec)
    hidden, text = inputs()
    codes = torch.randint(-1, 16, (3, spec.codebooks), generator=torch.Generator().manual_seed(4))
    whole = model(hidden, text, codes)
    assert whole.shape == (3, spec.codebooks, 16)
    cache, previous = model.init_cache(3), text
    for codebook in range(spec.codebooks):
        got = model.logits(codebook, previous, hidden, cache)
        torch.testing.assert_close(got, whole[:, codebook], atol=1e-5, rtol=1e-4)
        previous = codes[:, codebook]


def test_what_is_drawn_is_fed_to_the_next() -> None:
    model = build(SPEC)
    hidden, text = inputs()
    codes = model.sample(hidden, text, greedy)
    assert torch.equal(model(hidden, text, codes).argmax(-1), codes)
    assert torch.equal(model.sample(hidden, text, greedy, codebooks=4), codes[:, :4])


def test_rows_do_not_see_each_other_and_a_cache_may_be_used_again() -> None:
    model = build(SPEC)
    hidden, text = inputs()
    codes = model.sample(hidden, text, greedy)
    cache = model.init_cache(1).fill_(7.0)
    for row in range(3):
        alone = model.sample(hidden[row : row + 1], text[row : row + 1], greedy, cache=cache)
        assert torch.equal(alone[0], codes[row])


def test_a_forced_code_is_what_the_next_codebook_is_told() -> None:
    model = build(SPEC)
    hidden, text = inputs()
    free = model.sample(hidden, text, greedy)
    forced = torch.full_like(free, ZERO_TOKEN)
    assert torch.equal(model.sample(hidden, text, greedy, forced=forced), free)
    forced[:, 0] = (free[:, 0] + 1) % 16
    told = model.sample(hidden, text, greedy, forced=forced)
    assert torch.equal(told[:, 0], free[:, 0])
    assert torch.equal(model(hidden, text, torch.cat((forced[:, :1], told[:, 1:]), 1)).argmax(-1)[:, 1:], told[:, 1:])


def test_guidance_leaves_the_unconditioned_behind() -> None:
    model = build(SPEC)
    hidden, text = inputs(2)
    null = torch.randn(2, 24, generator=torch.Generator().manual_seed(9))
    doubled = torch.cat((hidden, null))
    assert torch.equal(model.sample(doubled, text, greedy, guidance=1.0), model.sample(hidden, text, greedy))
    assert torch.equal(model.sample(doubled, text, greedy, guidance=0.0), model.sample(null, text, greedy))
    seen: list[Tensor] = []

    def draw(logits: Tensor, codebook: int) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    model.sample(doubled, text, draw, guidance=3.0)
    cache = model.init_cache(4)
    first, second = model.logits(0, text.repeat(2), doubled, cache).chunk(2)
    torch.testing.assert_close(seen[0], second + 3 * (first - second))


def test_nothing_adds_nothing() -> None:
    for two_streams in (False, True):
        model = build(SPEC, two_streams=two_streams)
        hidden, _ = inputs(1)
        nothing = torch.tensor([ZERO_TOKEN])
        with_nothing = model.logits(0, nothing, hidden, model.init_cache(1))
        model.text_emb.weight.zero_()
        torch.testing.assert_close(with_nothing, model.logits(0, torch.tensor([5]), hidden, model.init_cache(1)))


def test_two_streams_of_text_in_one_number() -> None:
    torch.manual_seed(0)
    table = TokenEmbedding(10, 6, two_streams=True)
    assert table.out1 is not None
    assert table.out2 is not None
    first, second = table.weight[4], table.weight[7]
    alone, both = table(torch.tensor([4, (7 + 1) * 10 + 4]))
    torch.testing.assert_close(alone, table.out1(first))
    torch.testing.assert_close(both, table.out1(first) + table.out2(second))
    assert not table(torch.tensor(ZERO_TOKEN)).any()


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="schedule of 2 entries for 3"):
        DepformerSpec(3, SHAPE, schedule=(0, 1))
    with pytest.raises(ValueError, match="positional"):
        DepformerSpec(3, dataclasses.replace(SHAPE, positional_embedding="rope"))
    with pytest.raises(ValueError, match="2 widths"):
        DepformerSpec(3, SHAPE, widths=(8, 8))
    with pytest.raises(ValueError, match="gated"):
        DepformerSpec(3, dataclasses.replace(SHAPE, gating="none"))
