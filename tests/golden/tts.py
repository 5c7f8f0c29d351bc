"""Write tts.npz: what the ``moshi`` package says of seeded checkpoints, three voices begun at different times.

The order of a step is that of upstream's batched server: streams that make no sound yet are stepped alone some of the
time. f32, temperature 0. Run in an environment that has ``moshi`` 0.2.13: ``python tests/golden/tts.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

# Imported by the package for quantized models, which this is not.
sys.modules.setdefault("bitsandbytes", ModuleType("bitsandbytes"))
from moshi.conditioners import dropout_all_conditions  # noqa: E402
from moshi.models import LMGen, loaders  # noqa: E402
from moshi.models.tts import Entry, StateMachine, TokenIds, TTSModel  # noqa: E402

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE)]

import mimi_spec  # noqa: E402
import tts_spec  # noqa: E402
from mimi import upstream_config  # noqa: E402

from moshi_server.model.package import read_package  # noqa: E402
from moshi_server.model.synthetic import write_lm  # noqa: E402
from moshi_server.model.synthetic_mimi import seeded_mimi  # noqa: E402

TEXT_ONLY_BETWEEN = 2


def upstream_models(name: str, folder: Path) -> tuple[Any, Any]:
    """The language model, from a checkpoint in the package's naming, and the codec."""
    package = read_package(tts_spec.config_json(name), name)
    write_lm(folder / "model.safetensors", package.lm, seed=tts_spec.SEED, naming="pytorch", dtype=torch.float32)
    config = json.loads(tts_spec.config_json(name))
    for key in ("tts_config", "model_id", "model_type"):
        config.pop(key)
    lm = loaders.get_moshi_lm(folder / "model.safetensors", lm_kwargs=config, device="cpu", dtype=torch.float32)
    lm.dep_q = tts_spec.CODEBOOKS
    mimi = loaders.get_mimi(None, upstream_config(mimi_spec.SMALL), num_codebooks=tts_spec.CODEBOOKS)
    seeded = seeded_mimi(mimi_spec.SMALL, mimi_spec.SEED)
    mimi.load_state_dict({name: torch.from_numpy(value) for name, value in seeded}, strict=True)
    return lm, mimi


class Client:
    """One stream of the reference server."""

    def __init__(self, machine: Any, words: list[list[int]], start: int, every: int) -> None:
        self.machine, self.words, self.start, self.every = machine, list(words), start, every
        self.state = machine.new_state([])
        self.offset = 0
        self.complete = self.done = False
        self.sampled: list[int] = []
        self.forced: list[int] = []
        self.frames: list[Any] = []
        self.pcm: list[Any] = []

    def receive(self, tick: int) -> None:
        """Take the words that have come by this tick."""
        while self.words and tick >= self.start and (self.every == 0 or (tick - self.start) % self.every == 0):
            tokens = self.words.pop(0)
            if tokens[0] == 3:
                self.state.entries.append(Entry([], "", padding=len(tokens)))
            else:
                padding = max(0, tts_spec.PADDING_BETWEEN + len(tokens) - 1)
                self.state.entries.append(Entry(tokens, "", padding=padding))
            self.complete = not self.words
            if self.every:
                break

    def active(self, tick: int) -> bool:
        """Whether it can be stepped."""
        if self.done or tick < self.start:
            return False
        ahead = self.machine.second_stream_ahead
        spoken = sum(bool(entry.tokens) for entry in self.state.entries)
        if self.complete:
            return True
        if not self.state.entries:
            return False
        return ahead == 0 or not self.state.entries[0].tokens or spoken > ahead


@torch.no_grad()
def run(name: str, folder: Path) -> dict[str, Any]:
    """Everything that the three streams gave."""
    lm, mimi = upstream_models(name, folder)
    config = tts_spec.MODELS[name]
    tts = config["tts_config"]
    machine = StateMachine(
        token_ids=TokenIds(lm.text_card + 1),
        second_stream_ahead=tts.get("second_stream_ahead", 0),
        max_padding=tts_spec.MAX_PADDING,
        initial_padding=tts_spec.INITIAL_PADDING,
    )
    delay = int(tts["audio_delay"] * 12.5)
    model = TTSModel(lm, mimi, None, "", "", machine, delay, max_speakers=tts["max_speakers"], n_q=tts_spec.CODEBOOKS)
    attributes = []
    for stream in tts_spec.STREAMS:
        path = folder / f"{stream['voice']}.safetensors"
        save_file({"speaker_wavs": torch.from_numpy(tts_spec.voice(stream["voice"]))}, path)
        distilled = bool(model.valid_cfg_conditionings)
        attributes.append(model.make_condition_attributes([path, path], tts_spec.CFG if distilled else None))
        if not distilled:
            del attributes[-1].text["cfg"]
    guidance = 1.0 if distilled else tts_spec.CFG
    if guidance != 1.0:
        attributes += dropout_all_conditions(attributes)
    clients = [Client(machine, each["words"], each["start"], each["every"]) for each in tts_spec.STREAMS]
    stepped: list[bool] = []

    def on_text(tokens: Any) -> None:
        for row, client in enumerate(clients):
            if stepped[row]:
                client.sampled.append(int(tokens[row]))
                tokens[row], _ = machine.process(client.offset, client.state, int(tokens[row]))
                client.forced.append(int(tokens[row]))

    def on_audio(tokens: Any) -> None:
        late = generator.delays_cuda[1 : 1 + lm.dep_q] + delay
        tokens.masked_fill_(generator._streaming_state.offsets[:, None] < late, -1)

    generator = LMGen(
        lm,
        use_sampling=False,
        cfg_coef=guidance,
        cfg_is_no_text=True,
        condition_tensors=lm.condition_provider.prepare_and_provide(attributes),
        on_text_hook=on_text,
        on_audio_hook=on_audio,
        support_out_of_sync=True,
    )
    missing = torch.full((len(clients), lm.n_q - lm.dep_q, 1), -1)
    no_codes = torch.full((len(clients), lm.dep_q, 1), -1)
    left = TEXT_ONLY_BETWEEN
    with generator.streaming(len(clients)), mimi.streaming(len(clients)):
        for tick in range(1000):
            for client in clients:
                client.receive(tick)
            active = [client.active(tick) for client in clients]
            silent = [on and client.offset < delay for on, client in zip(active, clients, strict=True)]
            text_only = (left > 0 and any(silent)) or sum(silent) == sum(active)
            left = left - 1 if text_only else TEXT_ONLY_BETWEEN
            stepped[:] = silent if text_only else active
            pairs = list(zip(stepped, clients, strict=True))
            sounding = [on and client.offset - generator.max_delay >= delay for on, client in pairs]
            if not any(stepped):
                if all(client.done for client in clients):
                    break
                continue
            generator.set_exec_mask(torch.tensor(stepped))
            mimi.set_exec_mask(torch.tensor(sounding))
            frame = generator.step(missing, depformer_replace_tokens=no_codes if text_only else None)
            codes = frame[:, 1:].clamp(min=0)
            pcm = mimi.decode(codes).clamp(-0.99, 0.99) if any(sounding) else None
            for row, client in enumerate(clients):
                if not stepped[row]:
                    continue
                if sounding[row]:
                    client.frames.append(codes[row, :, 0].numpy().astype(np.int16))
                    client.pcm.append(pcm[row, 0].numpy().copy())
                client.offset += 1
                end = client.state.end_step
                if client.complete and end is not None:
                    client.done = client.offset >= end + delay + tts_spec.FINAL_PADDING + generator.max_delay
    golden = {}
    for number, client in enumerate(clients):
        assert client.done
        assert client.frames
        golden[f"{name}.{number}.sampled"] = np.array(client.sampled, np.int16)
        golden[f"{name}.{number}.forced"] = np.array(client.forced, np.int32)
        golden[f"{name}.{number}.frames"] = np.stack(client.frames)
        golden[f"{name}.{number}.pcm"] = np.concatenate(client.pcm)[:: mimi_spec.STRIDE].astype(np.float32)
        golden[f"{name}.{number}.words"] = np.array(client.state.consumption_times, np.int16)
    return golden


def main() -> None:
    torch.set_num_threads(1)
    golden: dict[str, Any] = {}
    for name in tts_spec.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            golden |= run(name, Path(folder))
    np.savez_compressed(HERE / "tts.npz", **golden)
    for key, array in golden.items():
        print(key, array.shape, len(np.unique(array)), float(np.abs(array).max()))


if __name__ == "__main__":
    main()
