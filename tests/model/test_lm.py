"""The language model's step against its parallel form, and what hangs on its hidden state."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moshi_server.model.conditioning import ContinuousSpec
from moshi_server.model.cross_attention import CrossSpec
from moshi_server.model.depformer import DepformerSpec
from moshi_server.model.embedding import ZERO_TOKEN
from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.transformer import TransformerSpec

SPEC = LmSpec(
    text_in_vocab_size=24,
    text_out_vocab_size=23,
    audio_vocab_size=17,
    audio_codebooks=3,
    transformer=TransformerSpec(32, 4, 2, 128, context=10, gating="silu"),
    extra_heads_num=4,
    extra_heads_dim=6,
)


def build(spec: LmSpec = SPEC) -> LmModel:
    torch.manual_seed(5)
    return LmModel(spec).eval().requires_grad_(False)


def tokens(batch: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(24, (batch, steps), generator=generator),
        torch.randint(17, (batch, 3, steps), generator=generator),
    )


def test_step_equals_forward() -> None:
    model = build()
    text, audio = tokens(2, 30)
    condition = torch.randn(32)
    logits, hidden = model(text, audio, condition)
    assert logits.shape == (2, 30, 23)
    assert hidden.shape == (2, 30, 32)
    state, slots = model.init_state(5), torch.tensor([4, 2])
    for t in range(30):
        got, h = model.step(text[:, t], audio[:, :, t], state, slots, condition)
        torch.testing.assert_close(got, logits[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(h, hidden[:, t], atol=1e-5, rtol=1e-4)


def test_every_input_matters() -> None:
    model = build()
    text, audio = tokens(1, 4)
    base = model(text, audio)[0][0, -1]
    changed_text = text.clone()
    changed_text[0, 0] = (changed_text[0, 0] + 1) % 24
    assert not torch.allclose(model(changed_text, audio)[0][0, -1], base)
    for codebook in range(3):
        changed = audio.clone()
        changed[0, codebook, 0] = (changed[0, codebook, 0] + 1) % 17
        assert not torch.allclose(model(text, changed)[0][0, -1], base)
    assert not torch.allclose(model(text, audio, torch.ones(32))[0][0, -1], base)


def test_extra_heads_are_the_first_class_of_a_softmax() -> None:
    model = build()
    hidden = torch.randn(3, 32)
    probabilities = model.extra_heads(hidden)
    assert probabilities.shape == (3, 4)
    weight = model.heads[1].weight
    assert isinstance(weight, torch.Tensor)
    torch.testing.assert_close(probabilities[:, 1], (hidden @ weight.T).softmax(-1)[:, 0])


def test_a_model_without_extra_heads_or_audio() -> None:
    spec = dataclasses.replace(SPEC, extra_heads_num=0, extra_heads_dim=0, audio_codebooks=0)
    model = build(spec)
    logits, hidden = model.step(
        torch.tensor([1]), torch.zeros(1, 0, dtype=torch.int64), model.init_state(1), torch.tensor([0])
    )
    assert logits.shape == (1, 23)
    assert model.extra_heads(hidden).shape == (1, 0)


def test_gradients_reach_every_parameter() -> None:
    spec = dataclasses.replace(SPEC, conditioners={"delay": ContinuousSpec(8, 1.0, 100.0)})
    model = build(spec).requires_grad_(True)
    text, audio = tokens(2, 12)
    assert model.condition_provider is not None
    condition = model.condition_provider.number("delay", 0.5) + model.condition_provider.learnt_padding("delay")
    logits, hidden = model(text, audio, condition)
    (logits.square().mean() + model.extra_head_logits(hidden).square().mean()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_logits_are_f32_in_every_type() -> None:
    model = build().to(torch.bfloat16)
    logits, hidden = model.step(
        torch.tensor([1]), torch.zeros(1, 3, dtype=torch.int64), model.init_state(1), torch.tensor([0])
    )
    assert logits.dtype is torch.float32
    assert hidden.dtype is torch.bfloat16
    assert model.extra_heads(hidden).dtype is torch.float32


DEPFORMER = DepformerSpec(3, TransformerSpec(16, 2, 1, 48, context=3, gating="silu", positional_embedding="none"))
SPEAKING = dataclasses.replace(
    SPEC,
    transformer=dataclasses.replace(SPEC.transformer, cross=CrossSpec(7, source_width=20), layer_scale=0.5),
    depformer=DEPFORMER,
    two_text_streams=True,
)


@pytest.mark.parametrize("slots", [[4, 2], [3]])
def test_step_equals_forward_with_a_source_for_each_slot(slots: list[int]) -> None:
    model = build(SPEAKING)
    text, audio = tokens(len(slots), 14)
    text = text + 24 * torch.arange(14)  # a second stream, -1 at first
    source = torch.randn(len(slots), 7, 20)
    logits, hidden = model(text, audio, None, source)
    state = model.init_state(5)
    inner = state["transformer"]
    assert isinstance(inner, dict)
    for row, slot in enumerate(slots):
        model.transformer.attend_to(model.transformer.keys_values(source[row]), inner, slot)
    for t in range(14):
        got, h = model.step(text[:, t], audio[:, :, t], state, torch.tensor(slots))
        torch.testing.assert_close(got, logits[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(h, hidden[:, t], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(text, audio, None, source + 1)[0], logits)


@pytest.mark.parametrize("slots", [[2, 0], [1, 2]])
def test_a_long_source_is_read_in_place(slots: list[int]) -> None:
    spec = dataclasses.replace(SPEC, transformer=dataclasses.replace(SPEC.transformer, cross=CrossSpec(1100)))
    model, state = build(spec), build(spec).init_state(3)
    text, audio = tokens(2, 1)
    source = torch.randn(2, 1100, 32)
    inner = state["transformer"]
    assert isinstance(inner, dict)
    for row, slot in enumerate(slots):
        model.transformer.attend_to(model.transformer.keys_values(source[row]), inner, slot)
    got, _ = model.step(text[:, 0], audio[:, :, 0], state, torch.tensor(slots))
    torch.testing.assert_close(got, model(text, audio, None, source)[0][:, 0], atol=1e-5, rtol=1e-4)


def test_zero_tokens_add_nothing() -> None:
    model = build(SPEAKING)
    text, audio = torch.full((1, 1), ZERO_TOKEN), torch.full((1, 3, 1), ZERO_TOKEN)
    condition = torch.randn(32)
    source = torch.randn(1, 7, 20)
    nothing = model(text, audio, condition, source)[0]
    for table in (model.text_emb, *model.emb):
        table.weight.zero_()
    torch.testing.assert_close(model(text + 5, audio + 5, condition, source)[0], nothing)


def test_two_streams_of_text_are_for_models_that_speak() -> None:
    with pytest.raises(ValueError, match="depth transformer"):
        dataclasses.replace(SPEC, two_text_streams=True)
