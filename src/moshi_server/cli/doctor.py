"""``moshi-server doctor``: what this machine can run, what is missing, and how to get it. It changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LOOKED_AT = ("demo", "config-stt-en_fr-hf", "config-stt-en-hf", "config-tts", "config-dialogue-moshi-hf")
"""The shipped configurations whose room is told."""


class Verdict(StrEnum):
    """How a finding is marked."""

    GOOD = "ok"
    NOTE = "--"
    BAD = "!!"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it, if anything."""

    verdict: Verdict
    what: str
    found: str
    remedy: str = ""


def doctor(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="The port that is to be free.")] = 8080,
) -> None:
    """Tell what this machine can run, what is missing, and how to get it. Exit status 1 if serving is impossible.

    Room is memory, not speed: how many streams a CPU keeps up with, `moshi-server bench` measures.
    """
    from .environment import load_dotenv

    load_dotenv()
    bad = False
    for finding in findings(port):
        bad = bad or finding.verdict is Verdict.BAD
        typer.echo(f"{finding.verdict}  {finding.what:<20} {finding.found}")
        if finding.remedy:
            typer.echo(f"{'':<24} {finding.remedy}")
    raise typer.Exit(1 if bad else 0)


def findings(port: int) -> Iterator[Finding]:
    """Everything that is looked at, in the order of a reader's interest."""
    yield _python()
    yield _torch()
    yield from _gpus()
    yield _processor()
    yield _memory()
    yield _model()
    yield _port(port)
    yield _disk()
    yield from _keys()
    yield from _extras()
    yield from _room()


def _python() -> Finding:
    return Finding(Verdict.GOOD, "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding(Verdict.BAD, "PyTorch", f"cannot be imported: {error}", "pip install 'torch>=2.11,<2.14'")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs only"
    return Finding(Verdict.GOOD, "PyTorch", f"{torch.__version__}, built {built}, {torch.get_num_threads()} threads")


def _gpus() -> Iterator[Finding]:
    import torch

    from ..gpu import megabytes, probe

    found = probe()
    if not found.gpus:
        why = "; ".join(found.notes) or "the driver knows none"
        yield Finding(Verdict.NOTE, "GPU", f"none: {why}", "models run on the CPU")
        return
    usable = torch.cuda.is_available()
    for gpu in found.gpus:
        memory = f"{megabytes(gpu.free or 0)} of {megabytes(gpu.total or 0)} free"
        yield Finding(Verdict.GOOD if usable else Verdict.NOTE, f"GPU {gpu.index}", f"{gpu.name}, {memory}")
    if not usable:
        remedy = "install a PyTorch built for CUDA: https://pytorch.org/get-started/locally"
        yield Finding(Verdict.BAD, "CUDA", f"torch {torch.__version__} cannot use the GPU", remedy)


def _processor() -> Finding:
    from ..gpu import choose_cpu_dtype, cpu_flags

    flags = cpu_flags()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16")
    has = " ".join(flag for flag in wanted if flag in flags) or "no vector instructions that it tells of"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(Verdict.GOOD, "CPU", f"{cores} cores, {has}; {choose_cpu_dtype(flags).reason}")


def _memory() -> Finding:
    total, free = memory()
    if total is None or free is None:
        return Finding(Verdict.NOTE, "memory", "this system does not say")
    found = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < 2**30:
        return Finding(Verdict.NOTE, "memory", found, "the embedded model needs about half of a GiB, the 1B model 2")
    return Finding(Verdict.GOOD, "memory", found)


def memory(meminfo: str = "/proc/meminfo") -> tuple[int | None, int | None]:
    """Total and available memory in bytes, or None where the system does not say."""
    try:
        lines = Path(meminfo).read_text(encoding="utf-8").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    except (OSError, ValueError, IndexError):
        return None, None
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _model() -> Finding:
    from ..config import load_config
    from ..errors import MoshiServerError
    from .configs import find

    try:
        config = load_config(find("demo"))
        files = [value for module in config.modules.values() for _, value in module.files()]
        from .. import hub

        missing = [uri for uri in files if (path := hub.cached(uri)) is None or not path.is_file()]
    except MoshiServerError as error:
        return Finding(Verdict.BAD, "embedded model", str(error), "install the package again")
    if missing:
        return Finding(Verdict.BAD, "embedded model", f"{', '.join(missing)} missing", "install the package again")
    return Finding(Verdict.GOOD, "embedded model", "complete; try it: moshi-server demo")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  (where a worker listens)
        except OSError as error:
            remedy = "end the program that uses it, or serve on another: worker --port"
            return Finding(Verdict.NOTE, f"port {port}", f"cannot be used: {error.strerror}", remedy)
    return Finding(Verdict.GOOD, f"port {port}", "free")


def _disk() -> Finding:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    at = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(at).free
    found = f"{free / 2**30:.0f} GiB free for downloads, in {cache}"
    if free < 5 * 2**30:
        return Finding(Verdict.NOTE, "disk", found, "the 1B model takes 2.4 GiB, the 2.6B model 6; HF_HOME moves them")
    return Finding(Verdict.GOOD, "disk", found)


def _keys() -> Iterator[Finding]:
    keys = [key for key in os.environ.get("MOSHI_API_KEY", "").split(",") if key.strip()]
    secret = bool(os.environ.get("BETTER_AUTH_SECRET", "").strip())
    if keys or secret:
        parts = [f"{len(keys)} API keys"] if keys else []
        parts += ["Better Auth's secret"] if secret else []
        yield Finding(Verdict.GOOD, "credentials", " and ".join(parts) + " from the environment")
    else:
        remedy = "set MOSHI_API_KEY, or authorized_ids in the configuration"
        yield Finding(Verdict.NOTE, "credentials", "none in the environment", remedy)


def _extras() -> Iterator[Finding]:
    from ..gpu import cpu_flags

    extras = [
        ("sounddevice", "microphone", "mic"),
        ("matplotlib", "plots of bench", "bench"),
        ("pocket_tts", "Pocket TTS", "pocket"),
    ]
    if "avx512_vnni" in cpu_flags():
        extras.append(("llvmlite", "faster steps on this CPU", "fast-cpu"))
    for module, what, extra in extras:
        if importlib.util.find_spec(module) is not None:
            yield Finding(Verdict.GOOD, what, f"{module} is installed")
        else:
            remedy = f"if you want it: pip install 'moshi-server[{extra}]'"
            yield Finding(Verdict.NOTE, what, f"{module} is not installed", remedy)


def _room() -> Iterator[Finding]:
    """How many streams of the well-known models fit, by the sizes in their configurations."""
    from ..config import load_config
    from ..engine.sizing import plan_config
    from ..errors import MoshiServerError
    from ..gpu import before_context, probe, visible
    from .configs import shipped
    from .plan import header_reader

    gpus = [before_context(each) for each in visible(probe().gpus, os.environ)]
    _, free = memory()
    for name in LOOKED_AT:
        if name not in shipped():
            continue
        try:
            config = load_config(shipped()[name], {})
            plans = plan_config(config, gpus, os.environ, read=header_reader(False, []))
        except MoshiServerError as error:
            yield Finding(Verdict.NOTE, name, f"does not fit: {error}")
            continue
        for device, plan in plans.items():
            weights = sum(term.bytes for term in plan.weights)
            streams = ", ".join(f"{module.batch_size} streams in {module.dtype.dtype}" for module in plan.modules)
            if device == "cpu" and free is not None and weights > free:
                found = f"its weights take {weights / 2**30:.1f} GiB and {free / 2**30:.1f} are free"
                yield Finding(Verdict.NOTE, name, found)
            elif not weights:
                yield Finding(Verdict.NOTE, name, f"on {device}: its size is known once it is downloaded")
            else:
                found = f"room on {device} for {streams}; weights {weights / 2**30:.1f} GiB"
                yield Finding(Verdict.GOOD, name, found)
