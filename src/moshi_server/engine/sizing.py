"""From a configuration to what its modules cost, and to a plan for each device; loads nothing and imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .. import hub
from ..config import (
    AsrConfig,
    BatchedAsrConfig,
    Config,
    LmConfig,
    LmModelConfig,
    Module,
    PyBatchedAsrConfig,
    PyConfig,
    TransformerConfig,
    TtsConfig,
)
from ..gpu import (
    LINEAR_BYTES,
    DepformerShape,
    GpuInfo,
    Header,
    LmShape,
    ModuleRequest,
    Plan,
    QuantizeRequest,
    TransformerShape,
    Weights,
    captured_step,
    codec_shape,
    codec_weights,
    cpu_cores,
    cpu_flags,
    dialogue_stream,
    lm_weights,
    plan_modules,
    stt_step,
    stt_stream,
)
from ..speech.dialogue import MAX_PENALTY_CONTEXT
from .sizing_tts import py_request, tts_request

ReadHeader = Callable[[str], Header | None]
"""The header of the checkpoint at a path or URI; None where it cannot be had, and the configuration's sizes count."""

FIRST_GPU = "cuda:0"


def plan_config(
    config: Config,
    gpus: Sequence[GpuInfo],
    env: Mapping[str, str],
    *,
    read: ReadHeader,
    device: str | None = None,
) -> dict[str, Plan]:
    """A plan for each device that the configuration's modules run on; modules on the same device share it.

    Args:
        config: the configuration; modules whose memory cannot be foretold (`PyPost`, `Mimi`) are in no plan.
        gpus: position N is ``cuda:N``. One that is not there counts as of unknown memory.
        env: where the ``MOSHI_*`` variables are read.
        read: gets a checkpoint's header.
        device: where all modules run, whatever they say themselves; None leaves the choice to each.

    Raises:
        ConfigError, CheckpointError, MemoryPlanError: as `plan_modules` and `read`.
    """
    groups: dict[str, list[ModuleRequest]] = {}
    for name, module in config.modules.items():
        where = device or module.device or (FIRST_GPU if gpus else "cpu")
        request = module_request(name, module, read, on_gpu=where.startswith("cuda"))
        if request is not None:
            groups.setdefault(FIRST_GPU if where == "cuda" else where, []).append(request)
    return {
        where: plan_modules(requests, _gpu(where, gpus), env, cpu_flags=cpu_flags(), cores=cpu_cores())
        for where, requests in groups.items()
    }


def module_request(name: str, module: Module, read: ReadHeader, *, on_gpu: bool = False) -> ModuleRequest | None:
    """What one module asks of its device; None if that cannot be foretold."""
    match module:
        case AsrConfig() | BatchedAsrConfig():
            return _speech_to_text(name, module, read, captured=on_gpu)
        case PyBatchedAsrConfig():
            return ModuleRequest(name, module.batch_size)
        case PyConfig() | LmConfig() | TtsConfig():
            request = _speaking(name, module, read)
            if on_gpu and request.per_stream:
                step = Weights(f"captured step of {name}", captured_step(request.per_stream))
                request = replace(request, weights=(*request.weights, step))
            return request
    return None


def _speaking(name: str, module: PyConfig | LmConfig | TtsConfig, read: ReadHeader) -> ModuleRequest:
    match module:
        case PyConfig():
            return py_request(name, module, read, _key)
        case LmConfig():
            return _dialogue(name, module, read)
        case TtsConfig():
            header = read(module.lm_model_file)
            parameters = header.elements if header is not None else 0
            request = tts_request(name, module, read, _key, transformer_shape(module.model.transformer))
            return replace(request, quantize=_quantize(module, header, parameters))


def lm_shape(config: LmModelConfig) -> LmShape:
    """The sizes that decide a language model's memory, from the configuration's words for them."""
    transformer, heads, depth = config.transformer, config.extra_heads, config.depformer
    return LmShape(
        text_in_vocab_size=config.text_in_vocab_size,
        text_out_vocab_size=config.text_out_vocab_size,
        audio_vocab_size=config.audio_vocab_size,
        audio_codebooks=config.audio_codebooks,
        transformer=transformer_shape(transformer),
        extra_heads_num=heads.num_heads if heads else 0,
        extra_heads_dim=heads.dim if heads else 0,
        depformer=DepformerShape(depth.num_slices, transformer_shape(depth.transformer), depth.low_rank_embeddings)
        if depth
        else None,
    )


def transformer_shape(config: TransformerConfig) -> TransformerShape:
    """The sizes that decide a transformer's memory."""
    return TransformerShape(
        d_model=config.d_model,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        dim_feedforward=config.dim_feedforward,
        context=config.context,
        gating="none" if config.gating is None else "silu",
        norm="rms_norm" if config.norm == "RmsNorm" else "layer_norm",
        layer_scale=config.layer_scale is not None,
        kv_repeat=config.kv_repeat,
        bias_ff=config.bias_ff,
        bias_attn=config.bias_attn,
    )


def _speech_to_text(
    name: str, module: AsrConfig | BatchedAsrConfig, read: ReadHeader, *, captured: bool
) -> ModuleRequest:
    lm = lm_shape(module.model)
    codebooks = module.model.audio_codebooks
    codec, origin = codec_shape(read(module.audio_tokenizer_file))
    header = read(module.lm_model_file)
    lm_cost = lm_weights(lm, header, conditioners=bool(module.model.conditioners))
    eight_bit = captured and module.kv_cache == "int8"
    weights = [
        Weights(_key(module.lm_model_file, lm), lm_cost),
        Weights(_key(module.audio_tokenizer_file, codebooks), codec_weights(codec, origin, codebooks)),
    ]
    if captured:
        step = stt_step(lm, codec, module.batch_size, eight_bit_kv=eight_bit)
        weights.append(Weights(f"captured step of {name}", step))
    return ModuleRequest(
        name,
        module.batch_size,
        module.dtype_override,
        weights=tuple(weights),
        per_stream=stt_stream(lm, codec, origin, eight_bit_kv=eight_bit, captured=captured),
        quantize=_quantize(module, header, lm.parameters),
    )


def _dialogue(name: str, module: LmConfig, read: ReadHeader) -> ModuleRequest:
    lm, gen = lm_shape(module.model), module.gen
    codebooks = max(gen.generated_audio_codebooks, gen.input_audio_codebooks)
    codec, origin = codec_shape(read(module.audio_tokenizer_file))
    header = read(module.lm_model_file)
    lm_cost = lm_weights(lm, header, conditioners=bool(module.model.conditioners))
    reach = gen.acoustic_delay + 1
    # What the model has said and heard, 64-bit, and how the slot draws its tokens.
    whole = 8 + reach + gen.generated_audio_codebooks + gen.input_audio_codebooks * reach + MAX_PENALTY_CONTEXT
    condition = 4 * lm.transformer.d_model if module.model.conditioners else 0
    return ModuleRequest(
        name,
        module.batch_size,
        module.dtype_override,
        weights=(
            Weights(_key(module.lm_model_file, lm), lm_cost),
            Weights(
                _key(module.audio_tokenizer_file, codebooks, "both ways"),
                codec_weights(codec, origin, codebooks, decoder=True),
            ),
        ),
        per_stream=dialogue_stream(lm, codec, origin, 8 * whole + 4 * 4 + condition),
        quantize=_quantize(module, header, lm.parameters),
    )


def _quantize(
    module: AsrConfig | BatchedAsrConfig | LmConfig | TtsConfig, header: Header | None, parameters: int
) -> QuantizeRequest:
    stored = header.metadata.get("quantize") if header is not None else None
    kind = next((kind for kind in LINEAR_BYTES if kind == stored), None)
    return QuantizeRequest(module.quantize, kind, parameters)


def _key(uri: str, *what: object) -> str:
    """One name for everything that is the same file, loaded the same way."""
    return " ".join(map(str, (hub.cached(uri) or uri, *what)))


def _gpu(device: str, gpus: Sequence[GpuInfo]) -> GpuInfo | None:
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    number = int(index or 0)
    return gpus[number] if number < len(gpus) else GpuInfo(number, device, None, None, None, source="unknown")
