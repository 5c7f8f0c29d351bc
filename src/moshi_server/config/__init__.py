"""The TOML as strict models, the same keys as upstream's; it fetches nothing and knows no model or socket."""

from .load import check_config, load_config
from .model import (
    ContinuousConditionerConfig,
    DepformerConfig,
    DialogueGenerationConfig,
    DialogueSamplingConfig,
    ExtraHeadsConfig,
    LmModelConfig,
    LutConditionerConfig,
    TransformerConfig,
    TtsGenerationConfig,
)
from .modules import (
    AsrConfig,
    BatchedAsrConfig,
    Config,
    LmConfig,
    MimiConfig,
    Module,
    ModuleConfig,
    PyBatchedAsrConfig,
    PyConfig,
    PyPostConfig,
    TtsConfig,
    WarmupConfig,
)
from .origins import Origin, looks_secret, origins

__all__ = [
    "AsrConfig",
    "BatchedAsrConfig",
    "Config",
    "ContinuousConditionerConfig",
    "DepformerConfig",
    "DialogueGenerationConfig",
    "DialogueSamplingConfig",
    "ExtraHeadsConfig",
    "LmConfig",
    "LmModelConfig",
    "LutConditionerConfig",
    "MimiConfig",
    "Module",
    "ModuleConfig",
    "Origin",
    "PyBatchedAsrConfig",
    "PyConfig",
    "PyPostConfig",
    "TransformerConfig",
    "TtsConfig",
    "TtsGenerationConfig",
    "WarmupConfig",
    "check_config",
    "load_config",
    "looks_secret",
    "origins",
]
