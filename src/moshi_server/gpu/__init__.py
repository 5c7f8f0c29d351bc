"""GPU memory: what is there (`probe`), what modules cost (`costs`, `shapes`, `header`), what fits (`plan`)."""

from .cards import CARDS, CONTEXT_BYTES, MB, before_context, find_card, hypothetical
from .costs import (
    CODEC_ROWS,
    Cost,
    ModuleRequest,
    Weights,
    codec_shape,
    codec_weights,
    dialogue_stream,
    lm_weights,
    stt_step,
    stt_stream,
)
from .dtypes import DType, DTypeChoice, choose_cpu_dtype, choose_dtype, cpu_flags
from .header import Header, TensorHead, read_header
from .plan import ModulePlan, Overrides, Plan, Term, megabytes, plan_modules
from .probe import GpuInfo, GpuReading, MemoryReader, Probe, probe, read_memory, say_once, visible
from .shapes import CodecShape, DepformerShape, LmShape, QuantizerShape, SeanetShape, TransformerShape

__all__ = [
    "CARDS",
    "CODEC_ROWS",
    "CONTEXT_BYTES",
    "MB",
    "CodecShape",
    "Cost",
    "DType",
    "DTypeChoice",
    "DepformerShape",
    "GpuInfo",
    "GpuReading",
    "Header",
    "LmShape",
    "MemoryReader",
    "ModulePlan",
    "ModuleRequest",
    "Overrides",
    "Plan",
    "Probe",
    "QuantizerShape",
    "SeanetShape",
    "TensorHead",
    "Term",
    "TransformerShape",
    "Weights",
    "before_context",
    "choose_cpu_dtype",
    "choose_dtype",
    "codec_shape",
    "codec_weights",
    "cpu_flags",
    "dialogue_stream",
    "find_card",
    "hypothetical",
    "lm_weights",
    "megabytes",
    "plan_modules",
    "probe",
    "read_header",
    "read_memory",
    "say_once",
    "stt_step",
    "stt_stream",
    "visible",
]
