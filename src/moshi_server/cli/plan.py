"""``moshi-server plan``: what fits which GPU, without one and without weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..config import Config
    from ..engine.sizing import ReadHeader
    from ..gpu import GpuInfo, Plan

TABLE_CONFIGS = ("config-stt-en_fr-hf", "config-stt-en_fr-lowram-sm75", "config-stt-en-hf", "unmute-stt")
TABLE_CARDS = ("RTX 2070", "RTX 3060", "RTX 4090", "L4", "L40S", "A100 40GB", "A100 80GB", "H100")


def plan(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The TOML file, or the name of a shipped one.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help='Plan for this card, such as "RTX 2070".', show_default=False)
    ] = None,
    vram_mb: Annotated[
        float | None,
        typer.Option("--vram-mb", min=1, help="Plan for a card with so much memory.", show_default=False),
    ] = None,
    sm: Annotated[
        str | None, typer.Option("--sm", help="That card's compute capability, such as 7.5.", show_default=False)
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Plan for no GPU.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch/--no-fetch", help="Whether to read the headers of remote checkpoints on the hub.")
    ] = True,
    table: Annotated[
        bool, typer.Option("--table", help="Print a Markdown table over well-known cards; fetches nothing.")
    ] = False,
) -> None:
    """Show how many streams fit a GPU, term by term. Loads no weights and needs no GPU.

    For example: moshi-server plan --config config-stt-en_fr-hf --gpu "RTX 2070"
    """
    from ..config import load_config
    from ..errors import ConfigError
    from .configs import locate
    from .environment import load_dotenv

    if table:
        typer.echo(card_table([config] if config else [Path(name) for name in TABLE_CONFIGS]))
        return
    if config is None:
        raise ConfigError("which configuration? give --config FILE")
    load_dotenv()
    loaded = load_config(locate(config))
    gpus = [] if cpu else _gpus(gpu, vram_mb, sm)
    notes: list[str] = []
    _print(_plans(loaded, gpus, cpu, header_reader(fetch, notes)), notes)


def card_table(configs: Iterable[Path]) -> str:
    """A Markdown table of what each of `TABLE_CARDS` has room for: the number type and the most streams at once."""
    from ..config import load_config
    from ..gpu import find_card, megabytes
    from .configs import locate

    loaded = {path.stem: load_config(locate(path), {}) for path in configs}
    lines = ["| GPU | memory | " + " | ".join(f"`{name}`" for name in loaded) + " |"]
    lines.append("| --- | ---: | " + " | ".join("---:" for _ in loaded) + " |")
    for name in TABLE_CARDS:
        card = find_card(name)
        cells = [_most(config, card) for config in loaded.values()]
        lines.append(f"| {card.name} | {megabytes(card.total or 0)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def header_reader(fetch: bool, notes: list[str]) -> ReadHeader:
    """Reads headers of local and cached checkpoints, with ``fetch`` of remote ones; ``notes`` get what it lacked."""
    from .. import hub
    from ..errors import DownloadError
    from ..gpu import Header, read_header

    def read(uri: str) -> Header | None:
        path = hub.cached(uri)
        if path is None and not fetch:
            return None
        if path is not None and not path.exists():
            notes.append(f"there is no file {path}: the sizes of the configuration are used")
            return None
        try:
            return read_header(uri)
        except DownloadError as error:
            notes.append(f"{error}: the sizes of the configuration are used")
        return None

    return read


def _most(config: Config, card: GpuInfo) -> str:
    from ..engine.sizing import plan_config
    from ..errors import MemoryPlanError

    modules = {name: module.model_copy(update={"batch_size": "auto"}) for name, module in config.modules.items()}
    wide = config.model_copy(update={"modules": modules})
    try:
        plans = plan_config(wide, [card], {}, read=lambda _: None)
    except MemoryPlanError:
        return "-"
    return ", ".join(f"{m.dtype.dtype}: {m.batch_size}" for each in plans.values() for m in each.modules)


def _gpus(name: str | None, vram_mb: float | None, sm: str | None) -> list[GpuInfo]:
    from ..errors import ConfigError
    from ..gpu import before_context, find_card, hypothetical, probe, visible

    if name is not None and (vram_mb is not None or sm is not None):
        raise ConfigError("--gpu names a known card; --vram-mb and --sm describe another: give one or the other")
    if name is not None:
        return [find_card(name)]
    if vram_mb is not None or sm is not None:
        if vram_mb is None or sm is None:
            raise ConfigError("--vram-mb and --sm belong together", hint="for example --vram-mb 8192 --sm 7.5")
        return [hypothetical(f"GPU with {vram_mb:g} MB", vram_mb, _capability(sm))]
    found = probe()
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    return [before_context(each) for each in visible(found.gpus, os.environ)]


def _capability(text: str) -> tuple[int, int]:
    from ..errors import ConfigError

    major, _, minor = text.removeprefix("sm_").partition(".")
    if not minor and len(major) >= 2:  # sm_75
        major, minor = major[:-1], major[-1]
    if not (major.isdecimal() and (minor or "0").isdecimal()):
        raise ConfigError(f"--sm: expected a compute capability such as 7.5, got {text!r}")
    return int(major), int(minor or "0")


def _plans(config: Config, gpus: list[GpuInfo], cpu: bool, read: ReadHeader) -> dict[str, Plan]:
    from ..engine.sizing import plan_config
    from ..errors import ConfigError

    if not config.modules:
        raise ConfigError("there is no module to plan", key="modules")
    return plan_config(config, gpus, os.environ, read=read, device="cpu" if cpu else None)


def _print(plans: dict[str, Plan], notes: list[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    for device, each in plans.items():
        console.print(_terms(device, each))
        console.print(_modules(each))
    for note in dict.fromkeys(notes):
        typer.echo(f"note: {note}", err=True)
    for each in plans.values():
        for warning in each.warnings():
            typer.echo(f"warning: {warning}", err=True)


def _terms(device: str, plan: Plan) -> RenderableType:
    from rich.table import Table

    from ..gpu.plan import CONTEXT_ORIGIN

    known = plan.gpu is not None and plan.gpu.free is not None
    name = f"{device}: {plan.gpu.name}" if known and plan.gpu else f"{device}, memory unknown: nothing is limited"
    table = Table("what", "MB", "origin", title=name, title_justify="left")
    table.columns[1].justify = "right"
    minus = "- " if known else ""
    if plan.gpu is not None and plan.gpu.free is not None:
        table.add_row("  free", _mb(plan.gpu.free), plan.gpu.source)
        if plan.gpu.context:
            table.add_row(f"{minus}CUDA itself", _mb(plan.gpu.context), CONTEXT_ORIGIN)
        table.add_row(minus + plan.reserved.label, _mb(plan.reserved.bytes), plan.reserved.origin)
    for term in plan.weights:
        table.add_row(minus + term.label, _mb(term.bytes), term.origin)
    if plan.available is not None:
        table.add_section()
        table.add_row("= for streams", _mb(plan.available))
    return table


def _modules(plan: Plan) -> RenderableType:
    from rich.table import Table

    table = Table("module", "a stream takes", "MB", "origin", title_justify="left")
    table.columns[2].justify = "right"
    for module in plan.modules:
        for index, term in enumerate(module.per_stream):
            table.add_row("" if index else module.name, term.label, _mb(term.bytes), term.origin)
        table.add_row("", "together", _mb(module.stream_bytes))
        table.add_row("", "type", "", f"{module.dtype.dtype}: {module.dtype.reason}")
        lowered = f"lowered from {module.asked}" if module.lowered else f"asked for {module.asked}"
        table.add_row("", "streams at once", str(module.batch_size), lowered, style="bold")
        table.add_section()
    return table


def _mb(size: int) -> str:
    from ..gpu import megabytes

    return megabytes(size).removesuffix(" MB")
