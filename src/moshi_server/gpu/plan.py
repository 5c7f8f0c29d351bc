"""How many streams fit each module of one GPU: arithmetic on known terms, and the sentences that show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import ConfigError, MemoryPlanError
from .cards import MB
from .costs import Cost, ModuleRequest, Weights
from .dtypes import BYTES, DTypeChoice, choose_cpu_dtype, choose_dtype, quantized
from .probe import GpuInfo

PARAMS_BILLIONS: Final = "MOSHI_MODEL_PARAMS_BILLIONS"
PER_ITEM_MB: Final = "MOSHI_PER_BATCH_ITEM_MB"
RESERVED_MB: Final = "MOSHI_VRAM_RESERVED_MB"

DEFAULT_PARAMS_BILLIONS: Final = 7.0
DEFAULT_PER_ITEM_MB: Final = 400.0
DEFAULT_RESERVED_MB: Final = 512.0
AUTO_UNKNOWN: Final = 8
"""What ``batch_size = "auto"`` means where no memory is known to divide: on a CPU, or without NVML."""

CONTEXT_ORIGIN: Final = "as on an H100"
_DEFAULT: Final = "default"
_BISECTIONS: Final = 50


@dataclass(frozen=True, slots=True)
class Term:
    """One amount of memory in bytes, what it is, and where the figure comes from."""

    label: str
    bytes: int
    origin: str

    def __str__(self) -> str:
        return f"{self.label} {megabytes(self.bytes)} [{self.origin}]"


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """One module's share: ``batch_size`` streams, with weights in ``dtype``."""

    name: str
    asked: int | Literal["auto"]
    batch_size: int
    dtype: DTypeChoice
    weights: tuple[Term, ...]
    per_stream: tuple[Term, ...]

    @property
    def stream_bytes(self) -> int:
        """What each of its streams takes."""
        return sum(term.bytes for term in self.per_stream)

    @property
    def lowered(self) -> bool:
        """Whether it gets fewer streams than its configuration says."""
        return self.asked != "auto" and self.batch_size < self.asked


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one GPU, or of none (``gpu`` None, or of unknown memory: then nothing is limited).

    ``weights`` are those of all modules, each file once; ``available`` is what remains for streams.
    """

    gpu: GpuInfo | None
    modules: tuple[ModulePlan, ...]
    reserved: Term
    weights: tuple[Term, ...]
    available: int | None

    def __getitem__(self, name: str) -> ModulePlan:
        """The plan of the module ``name``."""
        return next(module for module in self.modules if module.name == name)

    def lines(self) -> list[str]:
        """One sentence for each module that gets what it asked for: its streams and type, and why."""
        return [self._line(module) for module in self.modules if not module.lowered]

    def brief(self, name: str) -> str:
        """What a module's streams take beside the weights of all modules, and of how much: a line for a banner."""
        module = self[name]
        weights = megabytes(sum(term.bytes for term in self.weights))
        free = f" of {megabytes(self.gpu.free)}" if self.gpu is not None and self.gpu.free is not None else ""
        streams = f"{module.batch_size} x {megabytes(module.stream_bytes)}"
        return f"{module.dtype.dtype}, weights {weights} + {streams}{free}"

    def warnings(self) -> list[str]:
        """One sentence for each module that gets fewer streams than configured, with every term and its origin."""
        return [
            f"module {module.name}: batch_size lowered from {module.asked} to {module.batch_size}: {self.sum(module)}"
            for module in self.modules
            if module.lowered
        ]

    def sum(self, module: ModulePlan) -> str:
        """The arithmetic behind a module's number of streams, written out."""
        assert self.gpu is not None
        assert self.available is not None
        terms = [f"{self.gpu.name} has {megabytes(self.gpu.free or 0)} free [{self.gpu.source}]"]
        if self.gpu.context:
            terms.append(f"CUDA itself {megabytes(self.gpu.context)} [{CONTEXT_ORIGIN}]")
        terms.append(str(self.reserved))
        terms += [str(term) for term in self.weights]
        others = [
            f"module {other.name} {other.batch_size} x {megabytes(other.stream_bytes)}"
            for other in self.modules
            if other is not module
        ]
        left = self.available - sum(o.batch_size * o.stream_bytes for o in self.modules if o is not module)
        each = " + ".join(str(term) for term in module.per_stream)
        return (
            f"{' - '.join(terms + others)} = {megabytes(left)}; "
            f"divided by {megabytes(module.stream_bytes)} a stream ({each})"
        )

    def halve(self, name: str, batch_size: int) -> int:
        """The next number of streams to try after memory for ``batch_size`` could not really be taken.

        Raises:
            MemoryPlanError: it was 1.
        """
        if batch_size > 1:
            return batch_size // 2
        raise self._refusal([self[name]])

    def _line(self, module: ModulePlan) -> str:
        kind = str(module.dtype)
        if self.available is None:
            why = "no GPU memory is known, the configured value stands"
            if module.asked == "auto":
                why = f'no GPU memory is known, "auto" means {AUTO_UNKNOWN}'
            return f"module {module.name}: {module.batch_size} at once, {kind}: {why}"
        why = "the most that fits" if module.asked == "auto" else "as configured"
        return f"module {module.name}: {module.batch_size} at once, {kind}, {why}: {self.sum(module)}"

    def _refusal(self, modules: Sequence[ModulePlan]) -> MemoryPlanError:
        names = ", ".join(module.name for module in modules)
        streams = [Term(f"one stream of {module.name}", module.stream_bytes, _origins(module)) for module in modules]
        terms = [self.reserved, *self.weights, *streams]
        if self.gpu is None or self.gpu.free is None:
            return MemoryPlanError(f"module {names}: not even one stream fits the device", hint=_refusal_hint(terms))
        if self.gpu.context:
            terms.insert(0, Term("CUDA itself", self.gpu.context, CONTEXT_ORIGIN))
        needed = sum(term.bytes for term in terms)
        total = f" of {megabytes(self.gpu.total)}" if self.gpu.total else ""
        return MemoryPlanError(
            f"module {names}: not even one stream fits: {megabytes(needed)} are needed "
            f"({', '.join(map(str, terms))}), and {self.gpu.name} has {megabytes(self.gpu.free)} free{total}",
            hint=_refusal_hint(terms),
        )


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the environment says of memory; None where it says nothing."""

    params_billions: float | None = None
    per_item_mb: float | None = None
    reserved_mb: float | None = None

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Overrides:
        """Read the three variables; an empty one counts as absent.

        Raises:
            ConfigError: a value is no number, or not positive (``MOSHI_VRAM_RESERVED_MB`` may be 0).
        """
        return cls(
            _number(env, PARAMS_BILLIONS), _number(env, PER_ITEM_MB), _number(env, RESERVED_MB, zero_allowed=True)
        )


def plan_modules(
    requests: Sequence[ModuleRequest],
    gpu: GpuInfo | None,
    env: Mapping[str, str],
    *,
    cpu_flags: frozenset[str] = frozenset(),
    cores: int = 1,
) -> Plan:
    """Plan the modules that run on one device together.

    Args:
        requests: the modules, each with its costs (`moshi_server.engine.sizing` makes them of a configuration).
        gpu: the device; None for a CPU. One whose memory is unknown limits nothing.
        env: where the ``MOSHI_*`` variables are read.
        cpu_flags: the CPU's instructions, for the number type where ``gpu`` is None.
        cores: and how many of them there are.

    Raises:
        ConfigError: a variable of ``env`` makes no sense.
        MemoryPlanError: one stream of each module does not fit, and no documented default stands in for a real size.
    """
    overrides = Overrides.read(env)
    reserved = Term(
        "reserved",
        int((DEFAULT_RESERVED_MB if overrides.reserved_mb is None else overrides.reserved_mb) * MB),
        _DEFAULT if overrides.reserved_mb is None else RESERVED_MB,
    )
    shares: dict[tuple[str, str], Term] = {}
    plans: list[ModulePlan] = []
    for request in requests:
        if gpu is not None:
            dtype = choose_dtype(gpu.capability, request.dtype_override)
        else:
            parameters = sum(weights.cost.elements for weights in request.weights) or None
            dtype = choose_cpu_dtype(cpu_flags, request.dtype_override, parameters)
            if request.quantize is not None:
                dtype = quantized(dtype, request.quantize, cpu_flags, cores, request.dtype_override)
        weights = _weights(request, dtype, overrides)
        for key, term in weights.items():
            shares[key] = max(term, shares.get(key, term), key=lambda each: each.bytes)
        per_stream = _per_stream(request, dtype, overrides)
        batch_size = AUTO_UNKNOWN if request.batch_size == "auto" else request.batch_size
        plans.append(
            ModulePlan(request.name, request.batch_size, batch_size, dtype, tuple(weights.values()), per_stream)
        )
    loaded = tuple(shares.values())
    if gpu is None or gpu.free is None:
        return Plan(gpu, tuple(plans), reserved, loaded, None)
    available = gpu.free - gpu.context - reserved.bytes - sum(term.bytes for term in loaded)
    plan = Plan(gpu, tuple(plans), reserved, loaded, available)
    if sum(module.stream_bytes for module in plans) > available and not _guessed(plan):
        raise plan._refusal(plans)
    counts = share_out(available, [(module.asked, module.stream_bytes) for module in plans])
    sized = (
        ModulePlan(module.name, module.asked, count, module.dtype, module.weights, module.per_stream)
        for module, count in zip(plans, counts, strict=True)
    )
    return Plan(gpu, tuple(sized), reserved, loaded, available)


def share_out(available: int, asks: Sequence[tuple[int | Literal["auto"], int]]) -> list[int]:
    """How many streams each module gets of ``available`` bytes, from what it asks and what a stream of it takes.

    Everyone gets one. If the configured numbers fit they are left alone, and the modules that ask for "auto" divide
    the rest evenly, by bytes. If they do not, all are lowered in proportion, and what rounding leaves goes to the
    module that lost the largest part.
    """
    counts = [1 if asked == "auto" else asked for asked, _ in asks]
    spare = available - sum(count * each for count, (_, each) in zip(counts, asks, strict=True))
    if spare >= 0:
        automatic = [index for index, (asked, _) in enumerate(asks) if asked == "auto"]
        # Cheapest streams last: what one cannot use of its part goes to those after it.
        for rank, index in enumerate(sorted(automatic, key=lambda index: -asks[index][1])):
            extra = spare // (len(automatic) - rank) // asks[index][1]
            counts[index] += extra
            spare -= extra * asks[index][1]
        return counts
    asked_for = list(counts)

    def lowered(share: float) -> list[int]:
        return [max(1, int(count * share)) for count in asked_for]

    def fits(tried: list[int]) -> bool:
        return sum(count * each for count, (_, each) in zip(tried, asks, strict=True)) <= available

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(lowered(middle)) else (low, middle)
    counts = lowered(low)
    spare = available - sum(count * each for count, (_, each) in zip(counts, asks, strict=True))
    while True:
        open_to = [i for i, (_, each) in enumerate(asks) if each <= spare and counts[i] < asked_for[i]]
        if not open_to:
            return counts
        neediest = min(open_to, key=lambda i: counts[i] / asked_for[i])
        counts[neediest] += 1
        spare -= asks[neediest][1]


def megabytes(size: int) -> str:
    """A size in MB of 2**20 bytes, as NVIDIA's tools count them."""
    return f"{size / MB:.1f} MB" if abs(size) < 100 * MB else f"{size / MB:.0f} MB"


def _weights(request: ModuleRequest, dtype: DTypeChoice, overrides: Overrides) -> dict[tuple[str, str], Term]:
    width = BYTES[dtype.dtype]
    billions, origin = overrides.params_billions, PARAMS_BILLIONS
    if billions is None and not request.weights:
        billions, origin = DEFAULT_PARAMS_BILLIONS, _DEFAULT
    if billions is not None:
        key = request.weights[0].key if request.weights else f"module {request.name}"
        text = f"{origin}: {billions:g} billion parameters in {dtype.dtype}"
        return {(key, dtype.dtype): Term(_named("weights", request.weights), int(billions * 1e9) * width, text)}
    return {
        # What is of fixed size is the same file in every type.
        (item.key, (dtype.quantize or dtype.dtype) if item.cost.elements else ""): _term(item.cost, dtype)
        for item in request.weights
    }


def _per_stream(request: ModuleRequest, dtype: DTypeChoice, overrides: Overrides) -> tuple[Term, ...]:
    megabytes_each, origin = overrides.per_item_mb, PER_ITEM_MB
    if megabytes_each is None and not request.per_stream:
        megabytes_each, origin = DEFAULT_PER_ITEM_MB, _DEFAULT
    if megabytes_each is not None:
        return (Term("a stream", max(1, int(megabytes_each * MB)), origin),)
    return tuple(_term(cost, dtype) for cost in request.per_stream)


def _term(cost: Cost, dtype: DTypeChoice) -> Term:
    kind = dtype.quantize if dtype.quantize and cost.linears else dtype.dtype
    origin = f"{cost.origin}, {kind}" if cost.elements else cost.origin
    return Term(cost.label, cost.bytes(dtype.dtype, dtype.quantize), origin)


def _named(label: str, weights: Sequence[Weights]) -> str:
    return f"{label} of {weights[0].cost.label}" if weights else label


def _guessed(plan: Plan) -> bool:
    """Whether a documented default stands where a real size decides: then only the attempt can tell."""
    terms = [*plan.weights, *(term for module in plan.modules for term in module.per_stream)]
    return any(term.origin.startswith(_DEFAULT) for term in terms)


def _origins(module: ModulePlan) -> str:
    return "; ".join(dict.fromkeys(term.origin for term in module.per_stream))


def _refusal_hint(terms: Sequence[Term]) -> str:
    from_environment = [
        name for name in (PARAMS_BILLIONS, PER_ITEM_MB, RESERVED_MB) if any(name in term.origin for term in terms)
    ]
    advice = "see in nvidia-smi who else uses the GPU, serve fewer or smaller models on it, or start with --cpu"
    return f"check {', '.join(from_environment)}; {advice}" if from_environment else advice


def _number(env: Mapping[str, str], name: str, *, zero_allowed: bool = False) -> float | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        wanted = "a number of at least 0" if zero_allowed else "a number above 0"
        raise ConfigError(f"expected {wanted}, got {text!r}", key=name, hint="correct the environment, or .env")
    return value
