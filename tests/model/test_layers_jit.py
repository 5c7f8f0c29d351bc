"""All layers in one call: near to the plain step in every shape, and each stream for itself whatever the threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from moshi_server.model import jit, ring_jit, transformer
from moshi_server.model.layers_jit import Layers
from moshi_server.model.quantize import Quantize, QuantizedLinear, quantize
from moshi_server.model.streaming import State, leaf
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs llvmlite and a CPU with AVX512-VNNI")

SPEC = TransformerSpec(128, 4, 3, 512, context=13, gating="silu", max_period=1000.0)
MIMI = dataclasses.replace(SPEC, gating="none", norm="layer_norm", layer_scale=0.3)
SHAPES = {
    "gated": SPEC,
    "plain": MIMI,
    "grouped": dataclasses.replace(SPEC, kv_repeat=2),
    "still": dataclasses.replace(SPEC, positional_embedding="none"),
}


@pytest.fixture(autouse=True)
def narrow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models here are narrower than those that are worth it."""
    monkeypatch.setattr(transformer, "LEAST_WIDTH", 0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(spec: TransformerSpec, kind: Quantize | None = None) -> StreamingTransformer:
    torch.manual_seed(0)
    made = StreamingTransformer(spec).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name or "scale" in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.5)
    for name, module in list(made.named_modules()):
        if kind is not None and isinstance(module, torch.nn.Linear):
            made.set_submodule(name, QuantizedLinear(quantize(module.weight.detach(), kind)))
    return made.requires_grad_(False)


def run(lm: StreamingTransformer, x: torch.Tensor, slots: list[int], state: State, steps: int = 1) -> torch.Tensor:
    where = torch.tensor(slots)
    return torch.cat([lm.step(x[:, n : n + steps], state, where) for n in range(0, x.shape[1], steps)], dim=1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gated", None), ("gated", "int8"), ("gated", "int4"),
        ("plain", None), ("plain", "int4"), ("grouped", None), ("still", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("streams", "steps"), [(1, 1), (3, 1), (7, 1), (2, 2)])
def test_the_numbers_are_those_of_the_plain_step(name: str, kind: Quantize | None, streams: int, steps: int) -> None:
    """Before the ring is full, when it is, and once it is overwritten; other slots' rings stay as they are."""
    lm = model(SHAPES[name], kind)
    x, slots = torch.randn(streams, 30, SPEC.d_model), [4, 0, 2, 6, 5, 1, 7][:streams]
    plain, fast = lm.init_state(9), lm.init_state(9)
    expected = run(lm, x, slots, plain, steps)
    lm.prepare()
    assert lm._together is not None
    found = run(lm, x, slots, fast, steps)
    # What is rounded to 8 bits may round the other way after another order of sums.
    tolerance = 2e-6 if kind is None else 1e-3
    assert (found - expected).norm() < tolerance * expected.norm()
    ring = leaf(fast, "ring.2")
    assert (ring - leaf(plain, "ring.2")).norm() < tolerance * ring.norm()
    assert ring[3].count_nonzero() == 0
    assert leaf(fast, "position").tolist() == leaf(plain, "position").tolist()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_a_stream_does_not_change_anothers_numbers_by_a_bit(kind: Quantize | None) -> None:
    lm = model(SPEC, kind)
    lm.prepare()
    x = torch.randn(5, 20, SPEC.d_model)
    together = run(lm, x, [3, 1, 0, 2, 4], lm.init_state(5))
    torch.set_num_threads(1)
    for row in range(5):
        assert torch.equal(run(lm, x[row : row + 1], [row], lm.init_state(5))[0], together[row])


@pytest.mark.usefixtures("threads")
def test_rings_of_16_bits_are_read_and_written() -> None:
    lm, x = model(SPEC), torch.randn(2, 30, SPEC.d_model)
    expected = run(lm, x, [1, 0], lm.init_state(2))
    lm.prepare()
    found = run(lm, x, [1, 0], lm.init_state(2, dtype=ring_jit.DTYPE))
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_what_is_not_a_number_stays_with_its_stream(kind: Quantize | None) -> None:
    lm = model(SPEC, kind)
    lm.prepare()
    x = torch.randn(2, 3, SPEC.d_model)
    x[1, 1, 7] = torch.nan
    found = run(lm, x, [0, 1], lm.init_state(2))
    assert found[0].isfinite().all()
    assert found[1, 0].isfinite().all()
    assert found[1, 1].isnan().all()


@pytest.mark.usefixtures("threads")
def test_threads_that_share_weights_step_at_the_same_time() -> None:
    """As the modules of one checkpoint do, each with slots of its own."""
    lm = model(SPEC, "int8")
    lm.prepare()
    x = torch.randn(4, 400, SPEC.d_model)
    alone = [run(lm, x[n : n + 1], [3 * n], lm.init_state(10)) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda n: run(lm, x[n : n + 1], [n], lm.init_state(n + 1)), range(4)))
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))


def test_large_and_small_numbers_pass_the_activations() -> None:
    """A feed-forward of one layer whose activations lie far out, where exponentials would overflow."""
    for spec in (SPEC, MIMI):
        lm = model(dataclasses.replace(spec, num_layers=1))
        with torch.no_grad():
            for parameter in lm.layers[0].norm2.parameters():
                parameter.mul_(300)
        x = torch.randn(1, 8, spec.d_model)
        expected = run(lm, x, [0], lm.init_state(1))
        lm.prepare()
        found = run(lm, x, [0], lm.init_state(1))
        assert expected.abs().max() > 100
        assert (found - expected).norm() < 2e-6 * expected.norm()


def test_what_there_is_no_code_for_is_left_to_the_plain_step() -> None:
    assert not Layers.takes(model(dataclasses.replace(SPEC, bias_ff=True)))
    assert not Layers.takes(model(SPEC).bfloat16())
    mixed = model(SPEC)
    mixed.layers[1] = model(SPEC, "int8").layers[1]
    assert not Layers.takes(mixed)
    lm = model(SPEC)
    lm.prepare()
    assert lm._together is not None
    assert not lm._together.suits(40, 1, lm.init_state(1))


def test_narrow_layers_are_stepped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model(SPEC)
    monkeypatch.setattr(transformer, "LEAST_WIDTH", SPEC.d_model + 1)
    lm.prepare()
    assert lm._together is None
    monkeypatch.setattr(transformer, "LEAST_WIDTH", SPEC.d_model)
    lm.prepare()
    assert lm._together is not None
