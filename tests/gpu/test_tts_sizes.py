"""What text to speech is foretold to take, against what its modules take, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moshi_server.config import PyConfig, TtsConfig, load_config
from moshi_server.engine.build import build_engines, make_plans
from moshi_server.engine.hooks import EngineHooks
from moshi_server.engine.sizing import module_request
from moshi_server.gpu import read_header
from moshi_server.model.streaming import state_bytes

from ..speaking import HEAD, py_module, write_candle, write_package


@pytest.mark.parametrize("name", ["distilled", "guided", "candle"])
def test_a_slot_is_what_the_modules_take(name: str, tmp_path: Path) -> None:
    if name == "candle":
        text = write_candle(tmp_path).replace('device = "cpu"', 'device = "cpu"\ndtype_override = "f32"')
    else:
        write_package(tmp_path, name)
        text = py_module(tmp_path)
    (tmp_path / "config.toml").write_text(HEAD + text)
    config = load_config(tmp_path / "config.toml", {})
    module = config.modules["tts"]
    assert isinstance(module, PyConfig | TtsConfig)
    request = module_request("tts", module, read_header)
    assert request is not None
    dtype = make_plans(config, "cpu", {})["cpu"]["tts"].dtype.dtype
    foretold = sum(cost.bytes(dtype) for cost in request.per_stream if cost.label != "activations")
    runner = build_engines(config, device="cpu", hooks_for=lambda name, kind: EngineHooks(), env={})[0].engine._runner
    model = runner._model  # type: ignore[attr-defined]
    assert foretold == state_bytes(model.init_state(4)) / 4
    codec = next(each.cost for each in request.weights if each.cost.label == "codec")
    with torch.no_grad():
        assert codec.bytes("f32") == sum(tensor.nbytes for tensor in {id(t): t for t in tensors(model.mimi)}.values())


def tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
