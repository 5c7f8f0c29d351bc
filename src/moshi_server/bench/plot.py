"""The picture of a bench; matplotlib is imported when it is drawn, and only then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MoshiServerError
from .report import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL_HINT = "pip install 'moshi-server[bench]'"


def draw(trials: Sequence[Trial], limit: float, path: Path) -> None:
    """Delay against streams if several numbers were tried, and delay over time of the last that held (or the last).

    Raises:
        MoshiServerError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise MoshiServerError("a picture needs matplotlib", hint=INSTALL_HINT) from None
    mpl.use("Agg")
    from matplotlib import pyplot

    measured = [trial for trial in trials if trial.delays is not None]
    several = len({trial.streams for trial in measured}) > 1
    figure, axes = pyplot.subplots(1, 2 if several else 1, figsize=(12 if several else 7, 4.5), squeeze=False)
    try:
        if several:
            _by_streams(axes[0, 0], measured, limit)
        shown = max((trial for trial in measured if trial.held), key=lambda trial: trial.streams, default=None)
        if shown is not None or measured:
            _over_time(axes[0, -1], shown or measured[-1], limit)
        figure.tight_layout()
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise MoshiServerError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def _by_streams(axes: Axes, trials: Sequence[Trial], limit: float) -> None:
    # The lines are of the last trial of each number, which decided; the marks are of all.
    deciding = sorted({trial.streams: trial for trial in trials}.values(), key=lambda trial: trial.streams)
    streams = [trial.streams for trial in deciding]
    for name, style in (("p50", "-"), ("p90", "--"), ("p99", ":")):
        axes.plot(streams, [getattr(trial.delays, name) for trial in deciding], style, color="C0", label=name)
    for held, marker, label in ((True, "o", "held"), (False, "x", "not held")):
        some = [trial for trial in trials if trial.held is held]
        values = [trial.delays.p99 for trial in some if trial.delays is not None]
        axes.plot([trial.streams for trial in some], values, marker, color="C0" if held else "C3", label=label)
    axes.axhline(limit * 1000, color="0.6", linewidth=1, label="limit for p99")
    axes.set(xlabel="streams", ylabel=f"delay of {trials[0].measure} (ms)", yscale="log")
    axes.legend()


def _over_time(axes: Axes, trial: Trial, limit: float) -> None:
    seconds = [moment.second for moment in trial.moments]
    axes.plot(seconds, [moment.p50 for moment in trial.moments], "-", label="p50")
    axes.plot(seconds, [moment.p99 for moment in trial.moments], ":", label="p99")
    axes.axhline(limit * 1000, color="0.6", linewidth=1, label="limit for p99")
    axes.set(
        xlabel="time (s)", ylabel=f"delay of {trial.measure} (ms)", title=f"{trial.streams} streams", ylim=(0, None)
    )
    axes.legend()
