"""The TOML's top level and its eight module types; what is not upstream's is said to be ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from .checks import BatchSize, Count, Device, File, Folder, InstanceName, Route, same_kind
from .model import (
    DialogueGenerationConfig,
    DialogueSamplingConfig,
    LmModelConfig,
    LutConditionerConfig,
    Table,
    TtsGenerationConfig,
)
from .speech import speech_options


class Module(Table):
    """What every module may say; all of it is ours but ``backend``, which older files carry and nobody reads."""

    type: str
    auth: bool = True
    """Whether a client must show a key or token."""
    device: Device | None = None
    """Where it runs; the default is the first GPU, or the CPU if there is none."""
    max_session_seconds: PositiveFloat | None = None
    """How long one stream may last; no limit if absent (360 s for `Asr`, `Tts` and `Lm`, as upstream)."""
    idle_timeout_seconds: PositiveFloat = 20.0
    """A connection from which no frame comes for so long, pong included, is closed (4006)."""
    message_timeout_seconds: PositiveFloat = 120.0
    """A connection that sends no binary message for so long is closed (4006)."""
    send_timeout_seconds: PositiveFloat = 10.0
    """A client that does not read for so long is closed (4006)."""
    post_wait_seconds: NonNegativeFloat = 100.0
    """How long a POST waits for a free slot before it is answered 503."""
    upload_timeout_seconds: PositiveFloat = 600.0
    """How long a POST's body may take to come (408)."""
    step_timeout_seconds: NonNegativeFloat = 60.0
    """A model step that takes longer has hung: the module fails, its streams are closed (1011); 0 waits for ever."""
    max_message_mb: PositiveFloat = 16.0
    """A larger WebSocket message is refused (4003)."""
    max_upload_mb: PositiveFloat = 512.0
    """A larger POST body is refused (413)."""
    backend: str | None = None

    file_keys: ClassVar[tuple[str, ...]] = ()

    def files(self) -> Iterator[tuple[str, str]]:
        """Each (key, path or URI) that the module reads."""
        for key in self.file_keys:
            value = getattr(self, key)
            if value is not None:
                yield key, value

    def routes(self) -> list[str]:
        """The URL paths that the module answers."""
        return [self.path] if hasattr(self, "path") else []


class Numbers(Table):
    """How a module's weights are held."""

    dtype_override: Literal["f32", "f16", "bf16"] | None = None
    """The number type; the default is what suits the device."""
    quantize: Literal["int8", "int4", "none"] | None = None
    """Ours: linear layers in 8 or 4 bits, on a CPU; the default is what suits the model and the CPU."""


class _Asr(Module, Numbers):
    path: Route
    lm_model_file: File
    text_tokenizer_file: File
    audio_tokenizer_file: File
    model: LmModelConfig
    asr_delay_in_tokens: Count
    log_frequency_s: PositiveFloat | None = None
    conditioning_delay: float | None = None
    conditioning_learnt_padding: bool = False
    temperature: NonNegativeFloat | None = None
    kv_cache: Literal["int8"] | None = None
    """Ours: on a GPU, keep keys and values in 8 bits: twice the streams, for nearly the same numbers."""
    max_queue_seconds: PositiveFloat = 10.0
    """Ours: audio that may wait for the model before the client's socket is no longer read."""
    watchdog_seconds: NonNegativeFloat = 10.0
    """Ours: begin anew in the model after so much speech with no word; 0 for never."""
    turn_head: Annotated[int, Field(ge=0, le=3)] = 2
    """Ours: which pause decides on turns: 0, 1, 2, 3 for 0.5, 1, 2, 3 s."""
    turn_start: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Ours: a turn starts once the probability of that pause is at most this."""
    turn_end: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Ours: a turn ends once it is at least this."""

    file_keys = ("lm_model_file", "text_tokenizer_file", "audio_tokenizer_file")

    @model_validator(mode="after")
    def _turns_have_room(self) -> _Asr:
        if self.turn_start > self.turn_end:
            raise ValueError(f"turn_start ({self.turn_start:g}) must not be above turn_end ({self.turn_end:g})")
        return self


class AsrConfig(_Asr):
    """Speech to text, one stream at a time upstream; here the same engine as `BatchedAsr`."""

    type: Literal["Asr"]
    batch_size: BatchSize = 8
    """Ours: how many streams at once (upstream sets no bound)."""
    save_tokens: bool = True
    """Ours: whether each stream's tokens are saved in ``log_dir`` when it ends, as upstream always does."""
    max_session_seconds: PositiveFloat | None = 360.0


class BatchedAsrConfig(_Asr):
    """Speech to text for many streams that are stepped together."""

    type: Literal["BatchedAsr"]
    batch_size: BatchSize


class _Script(Module):
    script: File | None = None
    py: dict[str, Any] | None = None
    """Handed to the script's ``init``, whatever it holds."""
    script_timeout_seconds: PositiveFloat = 30.0
    """Ours: a script that has not come back from one call for so long has failed."""

    def files(self) -> Iterator[tuple[str, str]]:
        """Each (key, path or URI) that the module reads, those of ``py`` included."""
        yield from super().files()
        for key, value in (self.py or {}).items():
            if isinstance(value, str) and "://" in value:
                yield f"py.{key}", value


class PyBatchedAsrConfig(_Script):
    """Speech to text by a Python script, or by the built-in engine if none is named."""

    type: Literal["PyBatchedAsr"]
    path: Route
    batch_size: BatchSize
    text_tokenizer_file: File
    asr_delay_in_tokens: Count
    max_queue_seconds: PositiveFloat = 10.0

    file_keys = ("script", "text_tokenizer_file")


class PyConfig(_Script):
    """Batched text to speech by a Python script, or by the built-in engine if none is named."""

    type: Literal["Py"]
    path: Route
    batch_size: BatchSize
    text_tokenizer_file: File
    text_bos_token: Count

    file_keys = ("script", "text_tokenizer_file")

    @model_validator(mode="after")
    def _options_are_known(self) -> PyConfig:
        if self.script is None:
            speech_options(self.py)
        return self


class PyPostConfig(_Script):
    """One answer to one POST, by a Python script (voice embeddings)."""

    type: Literal["PyPost"]
    path: Route

    file_keys = ("script",)


class TtsConfig(Module, Numbers):
    """Text to speech, a single stream."""

    type: Literal["Tts"]
    path: Route
    lm_model_file: File
    text_tokenizer_file: File
    speaker_tokenizer_file: File
    audio_tokenizer_file: File
    voices: dict[str, File]
    voice_dir: Folder
    model: LmModelConfig
    generation: TtsGenerationConfig
    batch_size: BatchSize = 1
    """Ours: how many streams at once (upstream has one, for which others wait)."""
    max_session_seconds: PositiveFloat | None = 360.0

    file_keys = ("lm_model_file", "text_tokenizer_file", "speaker_tokenizer_file", "audio_tokenizer_file")

    def files(self) -> Iterator[tuple[str, str]]:
        """Each (key, path or URI) that the module reads, its voices included."""
        yield from super().files()
        for name, value in self.voices.items():
            yield f"voices.{name}", value


class PocketTtsConfig(Module):
    """Ours: text to speech by Kyutai's small model for CPUs, with the package ``pocket-tts`` (extra ``[pocket]``)."""

    type: Literal["PocketTts"]
    path: Route
    batch_size: PositiveInt = 2
    """How many streams at once, each on a thread of its own."""
    language: str = "english"
    """The package's name of a model."""
    config_file: File | None = None
    """A model of your own instead, as the package's YAML."""
    voices: dict[str, File] = Field(default_factory=dict)
    """Further voices: names, and recordings or the package's ``.safetensors``."""
    default_voice: str = "alba"
    temperature: NonNegativeFloat | None = None
    quantize: Literal["int8"] | None = None
    """8-bit linear layers, by the package."""

    file_keys = ("config_file",)

    def files(self) -> Iterator[tuple[str, str]]:
        """Each (key, path or URI) that the module reads, its voices included."""
        yield from super().files()
        for name, value in self.voices.items():
            yield f"voices.{name}", value


class LmConfig(Module, Numbers):
    """Full-duplex dialogue."""

    type: Literal["Lm"]
    path: Route
    lm_model_file: File
    text_tokenizer_file: File
    audio_tokenizer_file: File
    model: LmModelConfig
    gen: DialogueGenerationConfig
    batch_size: BatchSize = 4
    """Ours: how many conversations at once (upstream holds one)."""
    sampling: DialogueSamplingConfig = DialogueSamplingConfig()
    """Ours: how tokens are drawn unless the client asks otherwise."""
    conditions: dict[str, str] = Field(default_factory=dict)
    """Ours: the value of each conditioner; ``description`` is ``very_good`` unless it says otherwise, as upstream."""
    max_queue_seconds: PositiveFloat = 10.0
    """Ours: audio that may wait for the model before the client's socket is no longer read."""
    max_session_seconds: PositiveFloat | None = 360.0

    file_keys = ("lm_model_file", "text_tokenizer_file", "audio_tokenizer_file")

    @model_validator(mode="after")
    def _gen_fits_model(self) -> LmConfig:
        model, gen = self.model, self.gen
        if model.depformer is None:
            raise same_kind("a dialogue needs [model.depformer]: without it the model makes no sound")
        if not 1 <= gen.generated_audio_codebooks <= model.depformer.num_slices:
            raise same_kind(
                f"gen.generated_audio_codebooks = {gen.generated_audio_codebooks} must be from 1 to "
                f"model.depformer.num_slices = {model.depformer.num_slices}"
            )
        if gen.generated_audio_codebooks + gen.input_audio_codebooks != model.audio_codebooks:
            raise same_kind(
                f"gen has {gen.generated_audio_codebooks} + {gen.input_audio_codebooks} codebooks, "
                f"the model audio_codebooks = {model.audio_codebooks}"
            )
        if not gen.input_audio_codebooks:
            raise same_kind("gen.input_audio_codebooks = 0: this model does not listen")
        if gen.audio_vocab_size != model.audio_vocab_size:
            raise same_kind("gen.audio_vocab_size and model.audio_vocab_size differ")
        if gen.text_start_token >= model.text_in_vocab_size:
            raise same_kind("gen.text_start_token is not below model.text_in_vocab_size")
        for name, value in self.conditions.items():
            conditioner = (model.conditioners or {}).get(name)
            if not isinstance(conditioner, LutConditionerConfig):
                raise same_kind(f"conditions.{name} is not a conditioner of named values in [model.conditioners]")
            if value not in conditioner.possible_values:
                known = ", ".join(conditioner.possible_values)
                raise same_kind(f"conditions.{name} = {value!r} is not a value of that conditioner: {known}")
        return self


class MimiConfig(Module):
    """Rooms: one producer of codes, any number of listeners."""

    type: Literal["Mimi"]
    send_path: Route
    recv_path: Route
    audio_tokenizer_file: File
    auth_recv: bool = False
    rooms: list[str] = Field(min_length=1)
    default_room: str | None = None

    file_keys = ("audio_tokenizer_file",)

    def routes(self) -> list[str]:
        """The URL paths that the module answers."""
        return [self.send_path, self.recv_path]

    @model_validator(mode="after")
    def _default_is_a_room(self) -> MimiConfig:
        if self.default_room is not None and self.default_room not in self.rooms:
            raise same_kind(f"default_room = {self.default_room!r} is not one of rooms")
        return self


ModuleConfig = (
    AsrConfig
    | BatchedAsrConfig
    | PyBatchedAsrConfig
    | TtsConfig
    | PocketTtsConfig
    | PyConfig
    | PyPostConfig
    | LmConfig
    | MimiConfig
)


def _as_set(value: Any) -> Any:
    return frozenset(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


class WarmupConfig(Table):
    """``[warmup]``: whether the real step runs before the server says it is ready."""

    enabled: bool = True


class Config(Table):
    """A whole file."""

    static_dir: Folder
    log_dir: str
    instance_name: InstanceName
    authorized_ids: Annotated[frozenset[str], BeforeValidator(_as_set)] = frozenset()
    """API keys; ``MOSHI_API_KEY`` adds to them."""
    shutdown_grace_seconds: NonNegativeFloat = 30.0
    """Ours: how long running streams may go on after SIGTERM."""
    exit_on_failure: bool = False
    """Ours: end the worker, with status 70, once a model has failed for good, so that it is started anew."""
    refuse_before_upgrade: bool = False
    """Ours: a full or ending worker answers 503 before the WebSocket's upgrade, so that a proxy can try another one."""
    head_timeout_seconds: PositiveFloat = 20.0
    """Ours: how long a connection may take to say what it wants, the head of an HTTP request (408)."""
    max_sessions_per_key: PositiveInt | None = None
    """Ours: streams and requests that one key or user may have open at once (4004, or 429); no limit if absent."""
    max_starts_per_minute: PositiveInt | None = None
    """Ours: streams and requests that one key or user may begin in a minute (4004, or 429); no limit if absent."""
    warmup: WarmupConfig = WarmupConfig()
    modules: dict[str, Annotated[ModuleConfig, Field(discriminator="type")]] = Field(default_factory=dict)
    backend: str | None = None

    @model_validator(mode="after")
    def _routes_differ(self) -> Config:
        owner: dict[str, str] = {}
        for name, module in self.modules.items():
            for route in module.routes():
                if route in owner:
                    raise same_kind(f'modules {owner[route]} and {name} both answer "{route}"')
                owner[route] = name
        return self
