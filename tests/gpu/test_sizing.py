"""From whole configurations to plans: which modules share a GPU, which files they share, and what is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from moshi_server.config import Config, load_config
from moshi_server.engine.sizing import module_request, plan_config
from moshi_server.gpu import MB, GpuInfo, Header, TensorHead, find_card

CONFIGS = Path(__file__).parents[2] / "configs"
H100 = find_card("H100")


def no_header(_: str) -> Header | None:
    return None


def config(*names: str, device: dict[str, str] | None = None) -> Config:
    """The first module of each shipped configuration, together in one worker."""
    modules = {}
    for position, name in enumerate(names):
        module = next(iter(load_config(CONFIGS / f"{name}.toml", {}).modules.values()))
        key = f"m{position}"
        modules[key] = module.model_copy(update={"device": (device or {}).get(key)})
    return load_config(CONFIGS / "demo.toml", {}).model_copy(update={"modules": modules})


def test_an_8_gb_turing_card_gets_the_published_1b_in_f16() -> None:
    plan = plan_config(config("config-stt-en_fr-hf"), [find_card("RTX 2070")], {}, read=no_header)["cuda:0"]
    assert plan["m0"].dtype.dtype == "f16"
    assert 30 <= plan["m0"].batch_size < 64
    assert "lowered from 64" in plan.warnings()[0]


def test_the_low_memory_configuration_fits_as_it_is() -> None:
    plan = plan_config(config("config-stt-en_fr-lowram-sm75"), [find_card("RTX 2070")], {}, read=no_header)["cuda:0"]
    assert plan["m0"].batch_size == 4
    assert not plan.warnings()


def test_two_modules_of_one_model_hold_its_weights_once() -> None:
    alone = plan_config(config("config-stt-en_fr-hf"), [H100], {}, read=no_header)["cuda:0"]
    both = plan_config(config("config-stt-en_fr-hf", "config-stt-en_fr-hf"), [H100], {}, read=no_header)["cuda:0"]
    names = ["language model", "codec", "captured step"]
    assert [term.label for term in alone.weights] == names
    assert both.weights == (*alone.weights, alone.weights[-1])


def test_two_models_add_up_but_a_codec_of_other_codebooks_is_another() -> None:
    plan = plan_config(config("config-stt-en_fr-hf", "unmute-stt"), [H100], {}, read=no_header)["cuda:0"]
    assert [term.label for term in plan.weights] == ["language model", "codec", "captured step"] * 2


def test_8_bit_keys_and_values_nearly_double_the_streams() -> None:
    found = config("config-stt-en_fr-hf")
    module = found.modules["m0"].model_copy(update={"batch_size": "auto"})
    wide = found.model_copy(update={"modules": {"m0": module}})
    narrow = found.model_copy(update={"modules": {"m0": module.model_copy(update={"kv_cache": "int8"})}})
    plans = [plan_config(each, [H100], {}, read=no_header)["cuda:0"] for each in (wide, narrow)]
    assert 1.7 < plans[1]["m0"].batch_size / plans[0]["m0"].batch_size < 2
    on_cpu = [plan_config(each, [], {}, read=no_header, device="cpu")["cpu"]["m0"] for each in (wide, narrow)]
    assert on_cpu[0] == on_cpu[1]


def test_each_gpu_has_its_own_plan() -> None:
    where = {"m0": "cuda", "m1": "cuda:1", "m2": "cpu"}
    names = ["config-stt-en_fr-hf", "config-stt-en-hf", "demo"]
    plans = plan_config(config(*names, device=where), [find_card("RTX 2070"), H100], {}, read=no_header)
    assert {device: [m.name for m in plan.modules] for device, plan in plans.items()} == {
        "cuda:0": ["m0"],
        "cuda:1": ["m1"],
        "cpu": ["m2"],
    }
    assert plans["cuda:0"]["m0"].dtype.dtype == "f16"
    assert plans["cuda:1"]["m1"].dtype.dtype == "bf16"
    assert plans["cpu"].available is None


def test_a_gpu_that_nobody_knows_limits_nothing() -> None:
    plans = plan_config(config("config-stt-en-hf", device={"m0": "cuda:3"}), [], {}, read=no_header)
    assert plans["cuda:3"]["m0"].batch_size == 16


def test_a_device_for_all_wins() -> None:
    plans = plan_config(config("demo", device={"m0": "cuda:1"}), [H100], {}, read=no_header, device="cpu")
    assert list(plans) == ["cpu"]


def test_scripts_are_planned_by_the_documented_defaults_and_the_unforeseeable_not_at_all() -> None:
    plan = plan_config(config("config-tts"), [H100], {}, read=no_header)["cuda:0"]
    assert [term.bytes for term in plan.weights] == [14 * 10**9]
    assert plan["m0"].stream_bytes == 400 * MB
    assert plan_config(config("voice-cloning"), [H100], {}, read=no_header) == {}


def test_a_header_wins_over_the_configuration() -> None:
    module = config("demo").modules["m0"]
    header = Header({"text_emb.weight": TensorHead("BF16", (1000, 1000))}, {})
    asked: list[str] = []

    def read(uri: str) -> Header | None:
        asked.append(uri)
        return header if uri.endswith("/model.safetensors") else None

    request = module_request("m0", module, read)
    assert request is not None
    assert request.weights[0].cost.elements == 1_000_000
    assert request.weights[0].cost.origin == "checkpoint header"
    assert len(asked) == 2


@pytest.mark.parametrize("gpus", [[], [H100]])
def test_5_auto_is_what_fits_or_a_fixed_number_without_a_gpu(gpus: list[GpuInfo]) -> None:
    demo = config("demo")
    modules = {name: module.model_copy(update={"batch_size": "auto"}) for name, module in demo.modules.items()}
    (plan,) = plan_config(demo.model_copy(update={"modules": modules}), gpus, {}, read=no_header).values()
    assert plan["m0"].batch_size == 8 if not gpus else plan["m0"].batch_size > 1000
