"""From a configuration to engines, sized and loaded; beside the application, the only place that sees `Config`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import (
    AsrConfig,
    BatchedAsrConfig,
    Config,
    LmConfig,
    MimiConfig,
    Module,
    PocketTtsConfig,
    PyBatchedAsrConfig,
    PyConfig,
    PyPostConfig,
    TtsConfig,
)
from ..errors import ConfigError, MoshiServerError, NotServedError
from ..gpu import LINEAR_BYTES, DType, DTypeChoice, Header, Plan, Quantize, read_header
from ..hub import resolve
from ..speech.tokenizer import TextTokenizer
from ..speech.turns import TurnSettings
from ..speech.voices import Voices
from .ahead import AheadRunner, AheadStream, suits
from .asr import AsrStream, SttRunner
from .build_dialogue import dialogue_runner, dialogue_streams
from .build_package import packaged
from .build_pocket import pocket_engine
from .build_script import script_asr, script_post, script_tts
from .build_tts import Speech, py_files, py_speech, tts_lm_spec, tts_speech
from .cpu import choose_threads, keep_freed_memory
from .cuda import CudaSttRunner
from .devices import choose_device, cuda_gpus, fitting_runner, number_type
from .dialogue import DialogueRunner
from .hooks import EngineHooks
from .post import LatentRunner, PostStream
from .rooms import DecodeRunner
from .schedule import seats
from .sizing import plan_config
from .sizing_tts import config_uri, package_files
from .specs import lm_spec
from .token_log import PeriodicLog, RecordingRunner, SessionLog
from .tts import TtsRunner
from .worker import Engine, EngineLimits

if TYPE_CHECKING:
    import torch

    from ..model.lm import LmModel, LmSpec
    from ..model.mimi import Mimi

logger = logging.getLogger(__name__)

SERVED = ("Asr", "BatchedAsr", "Lm", "Mimi", "PocketTts", "Py", "PyBatchedAsr", "PyPost", "Tts")
CHECKPOINTS = ("lm_model_file", "audio_tokenizer_file", "speaker_tokenizer_file")
"""Keys of files whose header says how much memory they take."""


@dataclass(frozen=True, slots=True)
class BuiltModule:
    """A module ready to start, where it runs, and what memory that was planned to take ("" where nobody knows)."""

    name: str
    config: Module
    engine: Engine
    voices: Voices | None = None
    device: str = "cpu"
    memory: str = ""


def build_engines(
    config: Config,
    *,
    device: str | None,
    hooks_for: Callable[[str, str], EngineHooks],
    env: Mapping[str, str] = os.environ,
) -> list[BuiltModule]:
    """Load every module of a configuration, with as many slots as the memory of its device allows.

    Args:
        device: where all modules run, whatever they say themselves; None leaves the choice to each.
        hooks_for: what listens to a module, by its name and type.
        env: where the ``MOSHI_*`` variables of the memory plan are read.

    Raises:
        NotServedError: a module's type has no engine in this version.
        ConfigError, DownloadError, CheckpointError, MemoryPlanError: what kept a module from loading.
    """
    if not config.modules:
        raise ConfigError("there is no module to serve", key="modules", hint="add a [modules.NAME] table")
    for name, module in config.modules.items():
        if module.type not in SERVED:
            raise NotServedError(
                f"modules.{name}: type {module.type} is not served by this version",
                hint=f"remove the module, or set its type to one of {', '.join(SERVED)}",
            )
    asked, config = config, with_packages(config)
    widths = [module.model.transformer.d_model for module in config.modules.values() if hasattr(module, "model")]
    choose_threads(max(widths, default=0))
    keep_freed_memory()
    loader = _Loader(config)
    plans = make_plans(config, device, env)
    built: list[BuiltModule] = []
    for name, module in config.modules.items():
        voices = None
        with _named(name):
            where, hooks = choose_device(device or module.device), hooks_for(name, module.type)
            match module:
                case AsrConfig() | BatchedAsrConfig():
                    engine = loader.speech_to_text(name, module, where, _plan_of(plans, name), hooks)
                case LmConfig():
                    engine = loader.dialogue(name, module, where, _plan_of(plans, name), hooks)
                case MimiConfig():
                    engine = loader.rooms(name, module, where, hooks)
                case PyBatchedAsrConfig():
                    slots = _plan_of(plans, name)[name].batch_size
                    engine = script_asr(name, module, slots, hooks, warmup=config.warmup.enabled)
                case PyConfig(script=None) | TtsConfig():
                    engine, voices = loader.text_to_speech(name, module, where, _plan_of(plans, name), hooks)
                case PocketTtsConfig():
                    engine, voices = pocket_engine(name, module, hooks, warmup=config.warmup.enabled)
                case PyConfig():
                    slots = _plan_of(plans, name)[name].batch_size
                    engine = script_tts(name, module, slots, hooks, warmup=config.warmup.enabled)
                case PyPostConfig(script=None):
                    engine = loader.voice_embedding(name, module, where, hooks)
                case PyPostConfig():
                    engine = script_post(name, module, hooks, warmup=config.warmup.enabled)
                case _:
                    raise AssertionError(f"{module.type} is said to be served")
        memory = next((plan.brief(name) for plan in plans.values() if any(m.name == name for m in plan.modules)), "")
        engine.kind = asked.modules[name].type
        built.append(BuiltModule(name, asked.modules[name], engine, voices, str(where), memory))
    share_devices(built, device)
    return built


def share_devices(built: Sequence[BuiltModule], device: str | None) -> None:
    """Have modules on the same GPU take turns. On a CPU the system's scheduler interrupts long steps by itself.

    `PyPost` has no frames that could come late, and `PocketTts` has threads of its own: they have no part in it.
    """
    streaming = {module.name: module for module in built if module.config.type not in ("PyPost", "PocketTts")}
    devices = {name: choose_device(device or module.config.device) for name, module in streaming.items()}
    on_gpus = {name: str(where) for name, where in devices.items() if where.type != "cpu"}
    for name, seat in seats(on_gpus).items():
        streaming[name].engine.take_turns(seat)


def with_packages(config: Config) -> Config:
    """The configuration with each `PyBatchedAsr` module without a script as the `BatchedAsr` module that serves it."""
    modules: dict[str, Module] = dict(config.modules)
    for name, module in config.modules.items():
        if isinstance(module, PyBatchedAsrConfig) and module.script is None:
            with _named(name):
                modules[name] = packaged(module)
    return config.model_copy(update={"modules": modules})


def _plan_of(plans: Mapping[str, Plan], name: str) -> Plan:
    return next(plan for plan in plans.values() if any(each.name == name for each in plan.modules))


def make_plans(config: Config, device: str | None, env: Mapping[str, str]) -> dict[str, Plan]:
    """How many streams of each module fit its device, and in which number type; what was lowered is a warning.

    Raises:
        DownloadError, CheckpointError: a checkpoint whose header is needed cannot be had.
        MemoryPlanError: not even one stream fits.
    """
    gpus = [] if device == "cpu" else cuda_gpus()
    headers: dict[str, Header] = {}
    for name, module in config.modules.items():
        with _named(name):
            where = choose_device(device or module.device)
            in_bits = hasattr(module, "lm_model_file") and getattr(module, "quantize", None) in LINEAR_BYTES
            if where.type != "cpu" and in_bits:
                raise ConfigError("layers are held in 8 or 4 bits on a CPU only", key="quantize", hint="remove the key")
            for key, uri in module.files():
                if key in CHECKPOINTS:
                    headers[uri] = read_header(str(resolve(uri)))
            if isinstance(module, PyConfig) and module.script is None:
                files = package_files(module, resolve(config_uri(module)))
                for uri in (files.weights, files.codec) if files is not None else ():
                    headers[uri] = read_header(str(resolve(uri)))
    plans = plan_config(config, gpus, env, read=headers.get, device=device)
    for plan in plans.values():
        for line in plan.lines():
            logger.info(line)
        for warning in plan.warnings():
            logger.warning(warning)
    return plans


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which module an error belongs to."""
    try:
        yield
    except MoshiServerError as error:
        error.args = (f"modules.{name}: {error.message}",)
        raise


class _Loader:
    """Loads modules; weights that come from the same file are loaded once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._warmup = config.warmup.enabled
        self._lms: dict[tuple[Path, str, DType, Quantize | None, torch.device], LmModel] = {}
        self._codecs: dict[tuple[Path, int | None, bool, torch.device], Mimi] = {}

    def speech_to_text(
        self, name: str, module: AsrConfig | BatchedAsrConfig, device: torch.device, plan: Plan, hooks: EngineHooks
    ) -> Engine:
        """One module of type `Asr` or `BatchedAsr`."""
        import torch

        from ..model.conditioning import delay_condition
        from ..model.stt import SttModel

        sized = plan[name]
        tokenizer = TextTokenizer(resolve(module.text_tokenizer_file))
        try:
            lm = self._lm(resolve(module.lm_model_file), lm_spec(module.model), sized.dtype, device)
            mimi = self._mimi(resolve(module.audio_tokenizer_file), module.model.audio_codebooks, device)
        except torch.OutOfMemoryError:
            plan.halve(name, 1)
            raise
        condition = delay_condition(
            lm.condition_provider, module.conditioning_delay, module.conditioning_learnt_padding
        )
        model = SttModel(mimi, lm, condition=condition, temperature=module.temperature or 0.0)

        ahead = suits(mimi.spec, device)
        runner_type, stream_type = (AheadRunner, AheadStream) if ahead else (SttRunner, AsrStream)

        def make(slots: int) -> SttRunner:
            if device.type != "cuda":
                return runner_type(model, slots, device)
            return CudaSttRunner(model, slots, device, eight_bit_kv=module.kv_cache == "int8")

        runner = fitting_runner(make, name, sized.batch_size, plan)
        delay = text_delay(module)
        turns = TurnSettings(module.turn_head, module.turn_start, module.turn_end)
        log = self._token_log(module, runner.slots, (lm.spec.text_start_token, lm.spec.audio_pad_token))
        return Engine(
            name,
            module.type,
            runner if log is None else RecordingRunner(runner, log),
            lambda: stream_type(delay, tokenizer.decode, watchdog_seconds=module.watchdog_seconds, turns=turns),
            limits=EngineLimits(module.max_queue_seconds, module.max_session_seconds),
            hooks=hooks,
            warmup=self._warmup,
            token_log=log,
        )

    def _token_log(
        self, module: AsrConfig | BatchedAsrConfig, slots: int, start: tuple[int, int]
    ) -> SessionLog | PeriodicLog | None:
        folder, instance = Path(self._config.log_dir), self._config.instance_name
        if isinstance(module, AsrConfig):
            return SessionLog(folder, instance, slots, start) if module.save_tokens else None
        if module.log_frequency_s is None:
            return None
        return PeriodicLog(folder, instance, slots, start, module.log_frequency_s)

    def dialogue(self, name: str, module: LmConfig, device: torch.device, plan: Plan, hooks: EngineHooks) -> Engine:
        """One module of type `Lm`."""
        import torch

        sized = plan[name]
        tokenizer = TextTokenizer(resolve(module.text_tokenizer_file))
        codebooks = max(module.gen.generated_audio_codebooks, module.gen.input_audio_codebooks)
        try:
            lm = self._lm(resolve(module.lm_model_file), lm_spec(module.model), sized.dtype, device)
            mimi = self._mimi(resolve(module.audio_tokenizer_file), codebooks, device, decoder=True)
        except torch.OutOfMemoryError:
            plan.halve(name, 1)
            raise
        make_runner = dialogue_runner(module, lm, mimi, device)

        def make(slots: int) -> DialogueRunner:
            runner = make_runner(slots)
            if device.type == "cuda":
                runner.warmup()
            return runner

        return Engine(
            name,
            module.type,
            fitting_runner(make, name, sized.batch_size, plan),
            dialogue_streams(module, tokenizer),
            limits=EngineLimits(module.max_queue_seconds, module.max_session_seconds),
            hooks=hooks,
            warmup=self._warmup,
        )

    def text_to_speech(
        self, name: str, module: PyConfig | TtsConfig, device: torch.device, plan: Plan, hooks: EngineHooks
    ) -> tuple[Engine, Voices | None]:
        """One module of type `Py` without a script, or of type `Tts`, and its voices."""
        import torch

        sized = plan[name]
        tokenizer = TextTokenizer(resolve(module.text_tokenizer_file))
        try:
            speech = self._speech(module, tokenizer, sized.dtype, device)
        except torch.OutOfMemoryError:
            plan.halve(name, 1)
            raise

        def make(slots: int) -> TtsRunner:
            runner = speech.runner(slots, device, hooks.on_words)
            if device.type == "cuda":
                runner.warmup()
            return runner

        runner = fitting_runner(make, name, sized.batch_size, plan)
        # Upstream skips the warm-up of a module that has no voice to speak with.
        warmup = self._warmup and (speech.voices is None or bool(speech.voices.default or speech.voices.names))
        engine = Engine(
            name,
            module.type,
            runner,
            lambda: speech.stream(runner),
            limits=EngineLimits(session_seconds=module.max_session_seconds),
            hooks=hooks,
            warmup=warmup,
        )
        return engine, speech.voices

    def _speech(
        self, module: PyConfig | TtsConfig, tokenizer: TextTokenizer, numbers: DTypeChoice, device: torch.device
    ) -> Speech:
        if isinstance(module, PyConfig):
            files = py_files(module)
            lm = self._lm(resolve(files.weights), files.package.lm, numbers, device)
            mimi = self._mimi(resolve(files.codec), files.options.n_q, device, decoder=True)
            return py_speech(module, files, lm, mimi, tokenizer)
        codec = self._mimi(resolve(module.speaker_tokenizer_file), 1, device)
        spec = tts_lm_spec(module, lm_spec(module.model), codec.spec.seanet.dimension)
        lm = self._lm(resolve(module.lm_model_file), spec, numbers, device)
        assert lm.depformer is not None
        mimi = self._mimi(resolve(module.audio_tokenizer_file), lm.depformer.spec.codebooks, device, decoder=True)
        return tts_speech(module, lm, mimi, codec, tokenizer)

    def rooms(self, name: str, module: MimiConfig, device: torch.device, hooks: EngineHooks) -> Engine:
        """One module of type `Mimi`: a slot for each room, since each has one producer."""
        mimi = self._mimi(resolve(module.audio_tokenizer_file), None, device, decoder=True)
        runner = DecodeRunner(mimi, len(module.rooms), device)
        limits = EngineLimits(session_seconds=module.max_session_seconds)
        return Engine(name, module.type, runner, runner.make_stream, limits=limits, hooks=hooks, warmup=self._warmup)

    def voice_embedding(self, name: str, module: PyPostConfig, device: torch.device, hooks: EngineHooks) -> Engine:
        """One module of type `PyPost` without a script: a recording to Mimi's latents."""
        # Latents are not quantized: one codebook will do, however many the file has.
        mimi = self._mimi(resolve(voice_codec(module)), 1, device)
        limits = EngineLimits(session_seconds=module.max_session_seconds)
        runner = LatentRunner(mimi, device)
        return Engine(name, module.type, runner, PostStream, limits=limits, hooks=hooks, warmup=self._warmup)

    def _lm(self, path: Path, spec: LmSpec, numbers: DTypeChoice, device: torch.device) -> LmModel:
        from ..model.weights import load_lm

        kind = numbers.quantize
        key = (path, repr(spec), numbers.dtype, kind, device)
        if key not in self._lms:
            file = path if kind is None else quantized_file(path, kind)
            logger.info("loading %s", file)
            self._lms[key] = load_lm(file, spec, dtype=number_type(numbers.dtype), device=device, kind=kind)
        return self._lms[key]

    def _mimi(self, path: Path, codebooks: int | None, device: torch.device, *, decoder: bool = False) -> Mimi:
        from ..model.weights_mimi import load_mimi

        key = (path, codebooks, decoder, device)
        if key not in self._codecs:
            logger.info("loading %s", path)
            self._codecs[key] = load_mimi(path, num_codebooks=codebooks, decoder=decoder, device=device)
        return self._codecs[key]


VOICE_CODEC = "tokenizer-e351c8d8-checkpoint125.safetensors"
VOICE_KEYS = ("mimi_weight", "hf_repo", "config_path", "device", "log_folder", "dry_fraction", "num_cpu_threads")


def voice_codec(module: PyPostConfig) -> str:
    """Where the Mimi of a `PyPost` module without a script comes from: keys that upstream's own script has.

    Raises:
        ConfigError: a key that it does not have, or neither a file nor a repository.
    """
    options = module.py or {}
    for key in options:
        if key not in VOICE_KEYS:
            raise ConfigError(f"unknown key {key!r}", key="py", hint=f"known are {', '.join(VOICE_KEYS)}")
    if "mimi_weight" in options:
        return str(options["mimi_weight"])
    if "hf_repo" in options:
        return f"hf://{options['hf_repo']}/{VOICE_CODEC}"
    raise ConfigError("no mimi_weight", key="py", hint="name a Mimi checkpoint in [modules.NAME.py], or give a script")


def text_delay(module: AsrConfig | BatchedAsrConfig) -> int:
    """How many frames the text runs behind: from ``conditioning_delay`` (s) if the model is told it, as upstream."""
    if module.conditioning_delay is not None:
        return int(module.conditioning_delay * 12.5) + 1
    return module.asr_delay_in_tokens


def quantized_file(path: Path, kind: Quantize) -> Path:
    """Where a language model in 8 or 4 bits is read from: its checkpoint if it is so stored, else the cache's copy.

    The checkpoint as well if there can be no copy: it is then quantized while it is read.
    """
    from ..model.quantize_cache import cached

    if "quantize" in read_header(str(path)).metadata:
        return path
    return cached(path, kind) or path
