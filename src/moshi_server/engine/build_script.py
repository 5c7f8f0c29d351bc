"""From a module with ``script`` to an engine; like `engine/build.py` it sees `Config`, and it loads no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..config import PyBatchedAsrConfig, PyConfig, PyPostConfig
from ..hub import resolve, resolve_tree
from ..speech.text import SpokenText
from ..speech.tokenizer import TextTokenizer
from .hooks import EngineHooks
from .post import PostStream, ScriptPostRunner
from .runner import Runner, Stream
from .script import Script
from .script_asr import ScriptAsrRunner, ScriptAsrStream
from .script_tts import ScriptTtsRunner, ScriptTtsStream
from .worker import Engine, EngineLimits

ScriptConfig = PyBatchedAsrConfig | PyConfig | PyPostConfig


class _ScriptRunner(Runner, Protocol):
    def prepare(self) -> None:
        """Start the script."""


def script_asr(name: str, module: PyBatchedAsrConfig, slots: int, hooks: EngineHooks, *, warmup: bool) -> Engine:
    """Speech to text by a script."""
    tokenizer = TextTokenizer(resolve(module.text_tokenizer_file))
    script = _script(name, module, "step")
    runner = ScriptAsrRunner(script, slots, tokenizer.vocab_size, resolve_tree(module.py or {}))

    def stream() -> ScriptAsrStream:
        return ScriptAsrStream(module.asr_delay_in_tokens, tokenizer.decode)

    limits = EngineLimits(module.max_queue_seconds, module.max_session_seconds)
    return _engine(name, module, script, runner, stream, limits, hooks, warmup)


def script_tts(name: str, module: PyConfig, slots: int, hooks: EngineHooks, *, warmup: bool) -> Engine:
    """Text to speech by a script."""
    tokenizer = TextTokenizer(resolve(module.text_tokenizer_file))
    script = _script(name, module, "step")
    runner = ScriptTtsRunner(script, slots, resolve_tree(module.py or {}), hooks.on_words)

    def stream() -> ScriptTtsStream:
        return ScriptTtsStream(SpokenText(tokenizer, module.text_bos_token))

    limits = EngineLimits(session_seconds=module.max_session_seconds)
    return _engine(name, module, script, runner, stream, limits, hooks, warmup)


def script_post(name: str, module: PyPostConfig, hooks: EngineHooks, *, warmup: bool) -> Engine:
    """One answer to one recording by a script."""
    script = _script(name, module, "run_one")
    runner = ScriptPostRunner(script, resolve_tree(module.py or {}))
    limits = EngineLimits(session_seconds=module.max_session_seconds)
    return _engine(name, module, script, runner, PostStream, limits, hooks, warmup)


def _script(name: str, module: ScriptConfig, method: str) -> Script:
    assert module.script is not None
    return Script(resolve(module.script), name, seconds=module.script_timeout_seconds, methods=(method,))


def _engine(
    name: str,
    module: ScriptConfig,
    script: Script,
    runner: _ScriptRunner,
    make_stream: Callable[[], Stream],
    limits: EngineLimits,
    hooks: EngineHooks,
    warmup: bool,
) -> Engine:
    engine = Engine(
        name,
        module.type,
        runner,
        make_stream,
        limits=limits,
        hooks=hooks,
        warmup=warmup,
        prepare=runner.prepare,
        isolated=True,
    )
    script.on_hang = engine.abandon
    return engine
