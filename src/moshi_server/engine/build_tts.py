"""From a module of type `Py` (without a script) or `Tts` to its model, voices and streams.

Like `engine/build.py` it sees `Config`; where weights are loaded from is told to it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PyConfig, TtsConfig
from ..config.speech import SpeechOptions, speech_options
from ..errors import AudioError, CheckpointError, ConfigError
from ..hub import HUB_SCHEME, resolve
from ..speech.text import SpokenText, TextQueue
from ..speech.tokenizer import TextTokenizer
from ..speech.tts import DelayedWords, Machine, PaddedWords, Padding
from ..speech.voices import Voices, unknown_voice
from .cuda_speech import CudaTtsRunner
from .tts import Delivery, TtsRunner, TtsStream, VoiceChoice
from .voices import VoiceShelf, named_files, voice_files

if TYPE_CHECKING:
    import torch

    from ..model.conditioning import ConditionProvider
    from ..model.lm import LmModel, LmSpec
    from ..model.mimi import Mimi
    from ..model.package import Package
    from ..model.speaker import SpeakerSpec
    from ..model.streaming import State
    from ..model.tts import TtsModel

TTS_CONTROL = "also_good"
"""What upstream's `Tts` module tells every model that has the conditioner ``control``."""
PY_CONTROL = "ok"
"""As above, for the PyTorch package's models."""


@dataclass(frozen=True)
class PyFiles:
    """What a `Py` module without a script is loaded from."""

    options: SpeechOptions
    config: Path
    weights: str
    codec: str
    package: Package
    voices: Mapping[str, Path]


def py_files(module: PyConfig) -> PyFiles:
    """Find the module's files and read what its checkpoint says of itself.

    Raises:
        ConfigError, DownloadError, CheckpointError: a file that cannot be had, or is not what it should be.
    """
    from ..model.package import VOICE_FRAMES, read_package, speaks_with_voices
    from ..model.speaker import read_voice

    options = speech_options(module.py)
    repo = f"{HUB_SCHEME}{options.hf_repo}/"
    path = resolve(options.config_path or f"{repo}config.json")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    package = read_package(text, str(path))
    voices: Mapping[str, Path] = {}
    if speaks_with_voices(package):
        if options.voice_folder is None:
            raise ConfigError("this model needs voices", key="py.voice_folder", hint="name a folder of voice files")
        voices = voice_files(options.voice_folder, package.voice_suffix)
        if options.default_voice not in voices:
            unknown = unknown_voice(options.default_voice, tuple(voices))
            raise ConfigError(
                unknown.message, key="py.default_voice", hint=f"its file's name ends in {package.voice_suffix}"
            )
        frames = read_voice(voices[options.default_voice]).shape[-1]
        if frames != VOICE_FRAMES:
            package = read_package(text, str(path), frames)
    if not 1 <= options.n_q <= package.lm.audio_codebooks:
        raise ConfigError(f"n_q = {options.n_q}, but the model has {package.lm.audio_codebooks}", key="py.n_q")
    return PyFiles(
        options,
        path,
        options.moshi_weight or repo + package.weights,
        options.mimi_weight or repo + package.codec,
        package,
        voices,
    )


@dataclass(frozen=True)
class Speech:
    """A module's model, and what makes its runner and streams."""

    model: TtsModel
    shelf: VoiceShelf | None
    default: Delivery
    begin: Callable[[State, int, Delivery], None]
    text_only: int
    make_machine: Callable[[], Machine]
    make_text: Callable[[], TextQueue]
    own_seed: bool
    guided: bool
    marked_turns: bool

    @property
    def voices(self) -> Voices | None:
        """What a client may choose from."""
        return self.shelf.voices if self.shelf is not None else None

    def runner(self, slots: int, device: torch.device, on_words: Callable[[int, int], None]) -> TtsRunner:
        """A runner of so many slots."""
        default = self.default
        if self.shelf is not None and self.shelf.voices.default is not None:
            default = _with(default, attended=self.shelf.take(default.voice))
        kind = CudaTtsRunner if device.type == "cuda" else TtsRunner
        return kind(
            self.model, slots, device, begin=self.begin, default=default, text_only=self.text_only, on_words=on_words
        )

    def stream(self, runner: TtsRunner) -> TtsStream:
        """One client's logic."""
        delivery = _with(self.default, seed=secrets.randbits(32)) if self.own_seed else self.default
        return TtsStream(
            self.make_text(),
            self.make_machine(),
            delivery,
            voices=self.shelf,
            guided=self.guided,
            marked_turns=self.marked_turns,
            on_missing=runner.missed,
        )


def py_speech(module: PyConfig, files: PyFiles, lm: LmModel, mimi: Mimi, tokenizer: TextTokenizer) -> Speech:
    """A `Py` module without a script."""
    from ..model.speaker import SPEAKER_TENSOR, SpeakerSpec, speaker_source
    from ..model.tts import TtsModel, TtsSpec

    options, package = files.options, files.package
    distilled = "cfg" in package.lm.conditioners
    guidance = not distilled and options.cfg_coef != 1.0
    spec = TtsSpec(
        package.audio_delay,
        package.delays,
        options.n_q,
        pad_bonus=options.padding_bonus,
        guidance=guidance,
        without_text=options.cfg_is_no_text,
    )
    model = TtsModel(mimi, lm, spec).eval()
    values = {"control": PY_CONTROL} | ({"cfg": f"{options.cfg_coef:.1f}"} if distilled else {})
    conditions = _conditions(lm.condition_provider, package.sums, values)
    shelf = None
    if files.voices:
        assert lm.condition_provider is not None
        conditioner = lm.condition_provider.vectors(SPEAKER_TENSOR)
        assert lm.spec.transformer.cross is not None
        frames = lm.spec.transformer.cross.length // package.speakers
        speakers = SpeakerSpec(package.speakers, frames, conditioner.spec.dim, package.position_scale)
        shelf = VoiceShelf(
            Voices(files.voices, default=options.default_voice),
            named_files(files.voices, speakers),
            lambda embeddings: speaker_source(embeddings, conditioner, speakers),
            lm.transformer,
            speakers,
            repeated=min(2, package.speakers),
            dtype=lm.dtype,
        )
        shelf.take(VoiceChoice())
    padding = Padding(options.initial_padding, options.max_padding, options.padding_between, options.final_padding)
    ahead, vocabulary = package.second_stream_ahead, lm.spec.text_in_vocab_size
    return Speech(
        model,
        shelf,
        Delivery(
            temperature=options.temp,
            top_k=options.top_k or 0,
            seed=options.seed or 0,
            guidance=options.cfg_coef if guidance else 1.0,
        ),
        _begin(model, conditions),
        options.interleaved_text_only,
        lambda: DelayedWords(padding, spec.first_sound, ahead=ahead, vocabulary=vocabulary),
        lambda: TextQueue(SpokenText(tokenizer, module.text_bos_token)),
        own_seed=options.seed is None,
        guided=False,
        marked_turns=True,
    )


def tts_lm_spec(module: TtsConfig, spec: LmSpec, width: int) -> LmSpec:
    """``spec`` of the module's model, with the vectors that it attends to and their projection from ``width``.

    Raises:
        ConfigError: it is no model that speaks with voices.
    """
    import dataclasses

    from ..model.conditioning import TensorSpec
    from ..model.speaker import SPEAKER_TENSOR

    generation = module.generation
    if spec.depformer is None:
        raise ConfigError("the model makes no sound", key="model.depformer", hint="add [modules.NAME.model.depformer]")
    cross = spec.transformer.cross
    if cross is None:
        raise ConfigError("the model attends to no voice", key="model.transformer.cross_attention")
    length = _speakers(module, width).length
    transformer = dataclasses.replace(spec.transformer, cross=dataclasses.replace(cross, length=length))
    conditioners = {SPEAKER_TENSOR: TensorSpec(width), **spec.conditioners}
    if generation.speaker_cond_dim != (cross.source_width or spec.transformer.d_model):
        raise ConfigError(
            f"speaker_cond_dim = {generation.speaker_cond_dim} is not the width that the model attends to",
            key="generation.speaker_cond_dim",
        )
    return dataclasses.replace(spec, transformer=transformer, conditioners=conditioners)


def tts_speech(module: TtsConfig, lm: LmModel, mimi: Mimi, speaker_codec: Mimi, tokenizer: TextTokenizer) -> Speech:
    """A `Tts` module."""
    from ..model.speaker import SOURCE_TENSOR, SPEAKER_TENSOR, read_voice, speaker_source
    from ..model.tts import TtsModel, TtsSpec

    generation = module.generation
    assert lm.depformer is not None
    codebooks = lm.depformer.spec.codebooks
    delays = (0, *[generation.acoustic_delay] * (lm.spec.audio_codebooks - 1))
    spec = TtsSpec(
        generation.text_audio_delay_in_tokens,
        delays,
        codebooks,
        pad_token=generation.text_pad_token,
        guidance=True,
        without_text=False,
    )
    model = TtsModel(mimi, lm, spec).eval()
    provider = lm.condition_provider
    assert provider is not None
    has_control = "control" in (module.model.conditioners or {})
    both = _conditions(provider, ("control",) if has_control else (), {"control": TTS_CONTROL})
    conditioner = provider.vectors(SPEAKER_TENSOR)
    width = speaker_codec.spec.seanet.dimension
    speakers = _speakers(module, width)
    files = {name: resolve(uri) for name, uri in module.voices.items()}
    voices = Voices(files, default=None, folder=module.voice_dir)

    def embedding_of(name: str) -> torch.Tensor:
        if name in files:
            source = read_voice(files[name], SOURCE_TENSOR)[0]
            if source.shape[0] != speakers.length:
                raise CheckpointError(
                    f"{files[name]}: {source.shape[0]} vectors, where {speakers.length} are attended to"
                )
            return source
        path, start = voices.file(name)
        return _recorded(path, start, generation.speaker_cond_duration_s, speaker_codec)

    shelf = VoiceShelf(
        voices,
        embedding_of,
        lambda embeddings: speaker_source(embeddings, conditioner, speakers),
        lm.transformer,
        speakers,
        repeated=min(2, speakers.speakers),
        dtype=lm.dtype,
    )
    return Speech(
        model,
        shelf,
        Delivery(temperature=0.8, top_k=250, seed=42),
        _begin(model, None if both is None else (both[0], both[0])),
        0,
        lambda: PaddedWords(
            generation.max_consecutive_pads,
            generation.text_audio_delay_in_tokens,
            generation.extra_steps,
            end_of_padding=generation.text_eop_token,
            pad=generation.text_pad_token,
        ),
        lambda: TextQueue(SpokenText(tokenizer, generation.text_bos_token)),
        own_seed=False,
        guided=True,
        marked_turns=False,
    )


def _speakers(module: TtsConfig, width: int) -> SpeakerSpec:
    from ..model.package import FRAME_RATE
    from ..model.speaker import SpeakerSpec

    generation = module.generation
    frames = math.ceil(generation.speaker_cond_duration_s * FRAME_RATE)
    return SpeakerSpec(generation.speaker_cond_n_speakers, frames, width)


def _recorded(path: Path, start: float, seconds: float, codec: Mimi) -> torch.Tensor:
    """The embedding (1, dim, frames) of a recording, from ``start`` (s) on, made as loud as upstream makes it."""
    import torch

    from ..audio import SAMPLE_RATE, read_audio

    count, begin = int(seconds * SAMPLE_RATE), int(start * SAMPLE_RATE)
    try:
        pcm = torch.from_numpy(read_audio(path)[begin : begin + count])
    except AudioError as error:
        raise CheckpointError(f"{path}: {error.message}") from error
    if len(pcm) < count:
        raise CheckpointError(
            f"{path}: {len(pcm) / SAMPLE_RATE:.1f} s from {start:g} s on, but {seconds:g} s are needed"
        )
    with torch.inference_mode():
        loudness = pcm.std(correction=0).clamp(min=1e-6)
        device = next(codec.parameters()).device
        return codec.latents((pcm * (0.08 / loudness)).to(device)[None, None]).float()


def _conditions(
    provider: ConditionProvider | None, names: Sequence[str], values: Mapping[str, str]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is added to every input, (D,) f32, and to those that guide: its padding where a conditioner has no value."""
    if provider is None or not names:
        return None
    parts = [provider.named(name, values[name]) if name in values else provider.learnt_padding(name) for name in names]
    nothing = [provider.learnt_padding(name) for name in names]
    return sum(parts[1:], parts[0]).detach(), sum(nothing[1:], nothing[0]).detach()


def _begin(
    model: TtsModel, conditions: tuple[torch.Tensor, torch.Tensor] | None
) -> Callable[[State, int, Delivery], None]:
    from ..model.tts import MOST_CANDIDATES, Sampling

    usual = Sampling()

    def begin(state: State, slot: int, delivery: Delivery) -> None:
        greedy = delivery.temperature <= 0 or delivery.top_k == 1
        sampling = Sampling(
            temperature=0.0 if greedy else delivery.temperature,
            text_top_k=delivery.top_k or usual.text_top_k,
            audio_top_k=delivery.top_k or MOST_CANDIDATES,
            seed=delivery.seed,
            guidance=delivery.guidance,
        )
        attended = delivery.attended
        voice = None if attended is None else (attended.voice, attended.nobody)
        model.begin(state, slot, sampling, condition=conditions, voice=voice)

    return begin


def _with(delivery: Delivery, **changes: Any) -> Delivery:
    import dataclasses

    return dataclasses.replace(delivery, **changes)
