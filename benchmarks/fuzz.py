"""Feeds every decoder of outside bytes with inputs that are nearly right, and watches what becomes of them.

    python benchmarks/fuzz.py --inputs 1000000
    python benchmarks/fuzz.py --minutes 5 --only opus_stream

A finding is whatever a decoder raises that its contract does not name, a crash of the process, more than 100 ms of
processor time for one input, two ways to read the same bytes that do not agree, or memory that grows while the same
inputs are fed again and again. The exit status is 1 if there was any, and each is written to `--findings`.

With `atheris` installed (`pip install atheris`; Linux and macOS) Python's own branches guide the search: an input that
reaches new ones is changed further. Without it the seeds are changed blindly. Libraries in C and Rust beneath are fed
all the same, but do not guide. It needs Linux, a checkout and the `dev` group.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from fuzzing.mutate import mutants
from fuzzing.target import Target
from fuzzing.watch import GROWTH_BYTES, Finding, Journal, Watch, growth, pick

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
ENGINES = ("coverage", "mutations")
PEAK_BYTES = 400 * 2**20
"""Memory that one input may take for a while: of a recording, five seconds in many channels at a high rate."""


def load_targets() -> list[Target]:
    from fuzzing import bridge, messages, requests, sounds

    return [*messages.targets(), *sounds.targets(), *requests.targets(), *bridge.targets()]


def corpus(name: str) -> list[bytes]:
    """The inputs that were once findings."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


# The child: one target.


def hunt(options: argparse.Namespace) -> None:
    """Feed one target until its count or time is over."""
    folder = Path(options.folder)
    if options.engine == "coverage":
        import atheris

        with atheris.instrument_imports(
            include=["moshi_server", "wyoming", "jwt", "starlette", "python_multipart", "json", "tomllib"]
        ):
            target = _target(options.child)
    else:
        target = _target(options.child)
    watch = Watch(target, Journal(folder / "current"))
    end = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    report = folder / "report"

    def one(data: bytes) -> None:
        watch.run(bytes(data))
        if watch.inputs % 256 == 0 or watch.inputs >= options.inputs:
            over = watch.inputs >= options.inputs or time.monotonic() > end
            if over or watch.inputs % 4096 == 0:
                _write(report, watch, done=over)
            if over:
                os._exit(0)  # libFuzzer would go on

    seeds = [*target.seeds, *corpus(target.name)]
    if options.engine == "coverage":
        found = folder / "found"
        found.mkdir(exist_ok=True)
        for seed in seeds:
            (found / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        limits = f"-max_len={target.max_len} -len_control=20 -rss_limit_mb=3000 -timeout=120 -verbosity=0"
        flags = [*limits.split(), f"-seed={options.seed + 1}", f"-artifact_prefix={folder}/"]
        atheris.Setup([sys.argv[0], *flags, str(found)], one)
        atheris.Fuzz()
    for data in mutants(seeds, random.Random(f"{options.seed} {target.name}"), target.max_len):
        one(data)


def steady(options: argparse.Namespace) -> None:
    """Feed what was found to be different, again and again; say by how much memory grew."""
    folder, target = Path(options.folder), _target(options.child)
    kept = [path.read_bytes() for path in (folder / "found").glob("*")] if (folder / "found").exists() else []
    rng = random.Random(f"{options.seed} {target.name} again")
    kept += islice(mutants([*target.seeds, *corpus(target.name)], rng, target.max_len), 300)
    inputs = pick(kept, 300)
    journal, begun = Journal(folder / "current"), time.process_time()
    watch = Watch(target, journal, limit=float("inf"))
    for data in inputs:
        watch.run(data)
    once = time.process_time() - begun
    rounds = max(8, min(60, int(options.repeat / max(once, 0.001))))
    grown, peak = growth(target, inputs, rounds, journal)
    (folder / "steady").write_text(json.dumps({"grown": grown, "peak": peak, "fed": rounds * len(inputs)}))


def _target(name: str) -> Target:
    return next(target for target in load_targets() if target.name == name)


def _write(path: Path, watch: Watch, *, done: bool) -> None:
    found = [
        [each.kind, each.what, base64.b64encode(each.data).decode(), each.count] for each in watch.findings.values()
    ]
    report = {"inputs": watch.inputs, "slowest": watch.slowest, "findings": found, "done": done}
    path.with_suffix(".new").write_text(json.dumps(report))
    path.with_suffix(".new").rename(path)


# The parent: all of them, one after the other.


def fuzz(target: Target, inputs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one target."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        begun = time.monotonic()
        status, errors = _child(target, folder, options, "--inputs", str(inputs), "--minutes", str(options.share))
        report = json.loads((folder / "report").read_text()) if (folder / "report").exists() else {}
        findings = [
            Finding(kind, what, base64.b64decode(data), count) for kind, what, data, count in report.get("findings", [])
        ]
        seconds, memory = time.monotonic() - begun, {"grown": 0, "peak": 0, "fed": 0}
        if status or not report.get("done"):
            findings.append(_ended(folder, status, errors))
        elif steady := _child(target, folder, options, "--steady", "--repeat", str(options.repeat))[0]:
            findings.append(_ended(folder, steady, "while inputs were repeated"))
        else:
            memory = json.loads((folder / "steady").read_text())
        if memory["grown"] > GROWTH_BYTES:
            findings.append(
                Finding("grew", f"memory grew by {memory['grown'] / 2**20:.1f} MB over {memory['fed']} inputs", b"")
            )
        if memory["peak"] > PEAK_BYTES:
            findings.append(Finding("grew", f"an input took {memory['peak'] / 2**20:.0f} MB for a while", b""))
        reached = len(list((folder / "found").glob("*"))) if (folder / "found").exists() else 0
    return {
        "target": target.name,
        "inputs": report.get("inputs", 0),
        "seconds": seconds,
        "kept": reached,
        "slowest_ms": 1000 * report.get("slowest", 0.0),
        **memory,
        "findings": findings,
    }


def _ended(folder: Path, status: int, errors: str) -> Finding:
    kind = "hangs" if status == -signal.SIGPROF else "died"
    return Finding(kind, f"the process ended with {status}: {errors[-400:]}", Journal(folder / "current").read())


def _child(target: Target, folder: Path, options: argparse.Namespace, *more: str) -> tuple[int, str]:
    command = [sys.executable, __file__, "--child", target.name, "--folder", str(folder), "--engine", options.engine]
    command += ["--seed", str(options.seed), *more]
    # A fault of memory says where it was; each target has a process of its own, so that none ends another's.
    done = subprocess.run(
        command, env={**os.environ, "PYTHONFAULTHANDLER": "1"}, capture_output=True, text=True, errors="replace"
    )
    return done.returncode, done.stderr


def keep(finding: Finding, name: str, folder: Path) -> Path:
    """Write a finding's input down."""
    path = folder / name / hashlib.sha256(finding.data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--inputs", type=int, default=0, help="over all targets (default 100000, or as many as fit --minutes)"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="over all targets")
    parser.add_argument("--only", action="append", default=[], metavar="TARGET", help="this target; may be repeated")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[importlib.util.find_spec("atheris") is None])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=float, default=6.0, help="processor seconds a target for what was kept, again")
    parser.add_argument(
        "--findings", default=str(ROOT / "benchmarks" / "work" / "findings"), help="folder for the inputs that do harm"
    )
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--steady", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        steady(options) if options.steady else hunt(options)
        return
    raise SystemExit(run_all(options))


def run_all(options: argparse.Namespace) -> int:
    targets = load_targets()
    if unknown := set(options.only) - {target.name for target in targets}:
        print(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(target.name for target in targets)}")
        return 2
    targets = [target for target in targets if not options.only or target.name in options.only]
    whole = sum(target.share for target in targets)
    options.share = options.minutes / len(targets)
    inputs = options.inputs or (10**12 if options.minutes else 100_000)
    print(f"{len(targets)} decoders, inputs by {options.engine}, seed {options.seed}\n")
    print(
        f"{'decoder':16} {'inputs':>8} {'s':>6} {'kept':>6} {'slowest ms':>10} {'growth MB':>9} {'peak MB':>7} found",
        flush=True,
    )
    rows = []
    for target in targets:
        row = fuzz(target, math.ceil(inputs * target.share / whole), options)
        rows.append(row)
        print(
            f"{row['target']:16} {row['inputs']:8} {row['seconds']:6.0f} {row['kept']:6} {row['slowest_ms']:10.1f}"
            f" {row['grown'] / 2**20:9.1f} {row['peak'] / 2**20:7.0f} {len(row['findings'])}",
            flush=True,
        )
        for finding in row["findings"]:
            path = keep(finding, target.name, Path(options.findings))
            print(f"  {finding.kind} ({finding.count} times): {finding.what}\n  {path}", flush=True)
    found = sum(len(row["findings"]) for row in rows)
    total = sum(row["inputs"] for row in rows)
    print(f"\n{total} inputs, {sum(row['seconds'] for row in rows) / 60:.1f} minutes, {found or 'no'} findings")
    if options.json:
        plain = [{**row, "findings": [[each.kind, each.what, each.count] for each in row["findings"]]} for row in rows]
        Path(options.json).write_text(
            json.dumps({"engine": options.engine, "seed": options.seed, "rows": plain}, indent=1)
        )
    return int(bool(found))


if __name__ == "__main__":
    main()
