"""A whole server on a GPU: a worker on seeded checkpoints of the published shapes, under `moshi-server bench`.

    python benchmarks/gpu_server.py --stt 64 128 256 --tts 8 32 --seconds 30 --out gpu_server.json

Weights are random: what is heard and said means nothing, but takes as long. The load comes from as many processes as
``--generators`` says, on the same machine. ``--tiny`` takes small shapes, ``--cpu`` no GPU: to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from moshi_server.config import load_config  # noqa: E402
from moshi_server.hub import resolve  # noqa: E402
from moshi_server.model.lm import LmSpec  # noqa: E402
from moshi_server.model.mimi import MimiSpec  # noqa: E402
from moshi_server.model.package import VOICE_FRAMES, read_package  # noqa: E402
from moshi_server.model.seanet import SeanetSpec  # noqa: E402
from moshi_server.model.synthetic import SHAPES, write_lm  # noqa: E402
from moshi_server.model.synthetic_mimi import write_mimi  # noqa: E402
from moshi_server.model.transformer import TransformerSpec  # noqa: E402

KEY = "public_token"
HEAD = f'static_dir = "static"\nlog_dir = "{{folder}}/logs"\ninstance_name = "bench"\nauthorized_ids = ["{KEY}"]\n'

# --- checkpoints -------------------------------------------------------------------------------------------------


def stt_spec(tiny: bool) -> LmSpec:
    spec = SHAPES["stt-1b-en_fr"]
    return replace(spec, transformer=replace(spec.transformer, d_model=64, num_heads=4, num_layers=2)) if tiny else spec


def tts_config(tiny: bool) -> dict[str, Any]:
    """As a checkpoint of the package describes itself; the shape of tts-1.6b-en_fr as far as it is known."""
    width, layers, inner, depth = (64, 2, 64, 2) if tiny else (2048, 16, 1024, 4)
    lut = {"n_bins": 2, "dim": 16, "tokenizer": "noop"}
    return {
        "card": 2048,
        "n_q": 32,
        "dep_q": 32,
        "delays": [0, 0, *[2] * 31],
        "dim": width,
        "text_card": 8000,
        "text_card_out": 8000,
        "num_heads": 16,
        "num_layers": layers,
        "hidden_scale": 4.125,
        "context": 500,
        "max_period": 10000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": inner,
        "depformer_num_heads": 16,
        "depformer_num_layers": depth,
        "depformer_dim_feedforward": 3 * inner,
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "depformer_weights_per_step_schedule": [*range(8), *[8] * 8, *[9] * 8, *[10] * 8],
        "depformer_low_rank_embeddings": 16 if tiny else 128,
        "demux_second_stream": True,
        "cross_attention": True,
        "conditioners": {
            "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
            "cfg": {"type": "lut", "lut": {**lut, "possible_values": ["1.0", "2.0"]}},
            "control": {"type": "lut", "lut": {**lut, "possible_values": ["ok", "bad"]}},
        },
        "fuser": {"sum": ["control", "cfg"], "cross": ["speaker_wavs"]},
        "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2, "max_speakers": 5},
        "mimi_name": "mimi.safetensors",
    }


def mimi_spec(tiny: bool) -> MimiSpec:
    if not tiny:
        return MimiSpec()
    inner = TransformerSpec(64, 4, 2, 128, 250, norm="layer_norm", layer_scale=0.01)
    return MimiSpec(seanet=SeanetSpec(dimension=64, filters=4), transformer=inner)


def write(name: str, folder: Path, tiny: bool) -> None:
    """The files of one name in ``folder``."""
    if name == "mimi":
        write_mimi(folder / "mimi.safetensors", mimi_spec(tiny))
    elif name == "stt":
        write_lm(folder / "stt.safetensors", stt_spec(tiny))
    else:
        config = json.dumps(tts_config(tiny))
        (folder / "config.json").write_text(config)
        write_lm(folder / "tts.safetensors", read_package(config, "config.json").lm, naming="pytorch")
        (folder / "voices").mkdir()
        voice = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 512, VOICE_FRAMES)).astype(np.float32))
        save_file({"speaker_wavs": voice}, folder / "voices" / "anyone.wav.safetensors")


def checkpoints(folder: Path, names: Sequence[str], tiny: bool) -> None:
    with ProcessPoolExecutor() as pool:
        for done in [pool.submit(write, name, folder, tiny) for name in ("mimi", *names)]:
            done.result()


# --- configurations ----------------------------------------------------------------------------------------------


def tokenizer() -> Path:
    """The embedded model's: it says nothing to most tokens, and costs the same."""
    module = next(iter(load_config(ROOT / "configs" / "demo.toml", {}).modules.values()))
    return Path(resolve(module.text_tokenizer_file))  # type: ignore[union-attr]


def stt_toml(folder: Path, slots: int, tiny: bool, kv: str) -> str:
    text = (ROOT / "configs" / "config-stt-en_fr-hf.toml").read_text(encoding="utf-8")
    lines = []
    spec = stt_spec(tiny).transformer
    changed = {
        "log_dir": f'"{folder}/logs"',
        "lm_model_file": f'"{folder}/stt.safetensors"',
        "text_tokenizer_file": f'"{tokenizer()}"',
        "audio_tokenizer_file": f'"{folder}/mimi.safetensors"',
        "batch_size": f"{slots}" + ('\nkv_cache = "int8"' if kv == "int8" else ""),
        "d_model": str(spec.d_model),
        "num_heads": str(spec.num_heads),
        "num_layers": str(spec.num_layers),
    }
    section = ""
    for line in text.splitlines():
        section = line if line.startswith("[") else section
        key = line.partition("=")[0].strip()
        if key == "conditioning_learnt_padding" or key.startswith("#"):
            continue
        lines.append(f"{key} = {changed[key]}" if key in changed and "extra_heads" not in section else line)
    return "\n".join(lines)


def tts_toml(folder: Path, slots: int) -> str:
    return (
        HEAD.format(folder=folder)
        + f"""
[modules.tts]
type = "Py"
path = "/api/tts_streaming"
text_tokenizer_file = "{tokenizer()}"
batch_size = {slots}
text_bos_token = 1
[modules.tts.py]
config_path = "{folder}/config.json"
moshi_weight = "{folder}/tts.safetensors"
mimi_weight = "{folder}/mimi.safetensors"
voice_folder = "{folder}/voices"
default_voice = "anyone.wav"
n_q = 24
cfg_coef = 2.0
"""
    )


# --- running -----------------------------------------------------------------------------------------------------


@contextmanager
def worker(folder: Path, toml: str, *, cpu: bool) -> Iterator[tuple[str, float, int]]:
    """A worker that is ready: its address, how long it took (s), its process."""
    (folder / "worker.toml").write_text(toml)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "moshi_server", "worker", "--config", str(folder / "worker.toml")]
    command += ["--addr", "127.0.0.1", "--port", str(port), *(["--cpu"] if cpu else [])]
    start = time.perf_counter()
    log = (folder / "worker.log").open("w")
    process = subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        while not ready(port):
            if process.poll() is not None or time.perf_counter() - start > 240:
                raise SystemExit("the worker did not start:\n" + (folder / "worker.log").read_text()[-3000:])
            time.sleep(0.2)
        yield f"ws://127.0.0.1:{port}", time.perf_counter() - start, process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def load(folder: Path, url: str, pid: int, streams: int, options: argparse.Namespace, *, tts: bool) -> dict[str, Any]:
    """So many streams from several processes: what each of those says of its own."""
    generators = min(options.generators, streams)
    running = []
    for number in range(generators):
        share = streams // generators + (number < streams % generators)
        result = folder / f"load-{number}.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", "moshi_server", "bench", "--url", url, "--api-key", KEY, "--pid", str(pid)]
        command += ["--streams", str(share), "--seconds", str(options.seconds), "--join", "2", "--json", str(result)]
        command += ["--tts"] if tts else []
        out = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append((out, result))
    texts = [out.communicate()[0] for out, _ in running]
    trials: list[dict[str, Any]] = [
        json.loads(path.read_text())["trials"][0] if path.exists() else {"held": False} for _, path in running
    ]
    for text, trial in zip(texts, trials, strict=True):
        if "delays" not in trial:
            trial["why"] = text[-1500:]
    return {"streams": streams, "held": all(trial["held"] for trial in trials), "generators": trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stt", nargs="*", type=int, default=[64, 128, 256], help="streams of speech to text")
    parser.add_argument("--tts", nargs="*", type=int, default=[8, 32], help="streams of text to speech")
    parser.add_argument("--kv", choices=("model", "int8"), default="model", help="the recogniser's keys and values")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    wanted = [(name, getattr(options, name)) for name in ("stt", "tts") if getattr(options, name)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = time.perf_counter()
        checkpoints(folder, [name for name, _ in wanted], options.tiny)
        print(f"checkpoints written in {time.perf_counter() - start:.0f} s", flush=True)
        for name, counts in wanted:
            tts = name == "tts"
            slots = max(counts)
            toml = tts_toml(folder, slots) if tts else stt_toml(folder, slots, options.tiny, options.kv)
            with worker(folder, toml, cpu=options.cpu) as (url, seconds, pid):
                print(f"== {name}: ready after {seconds:.0f} s", flush=True)
                found[name] = {"seconds_to_start": seconds, "slots": slots, "loads": []}
                for streams in counts:
                    row = load(folder, url, pid, streams, options, tts=tts)
                    found[name]["loads"].append(row)
                    show(row)
                if options.out:
                    options.out.write_text(json.dumps(found, indent=1))


def show(row: dict[str, Any]) -> None:
    print(f"{row['streams']} streams: {'held' if row['held'] else 'not held'}")
    for trial in row["generators"]:
        kept = {key: trial.get(key) for key in ("why", "measure", "delays", "others", "counts", "server", "generator")}
        print("   ", json.dumps(kept), flush=True)


if __name__ == "__main__":
    main()
