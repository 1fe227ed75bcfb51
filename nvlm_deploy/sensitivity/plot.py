"""The losses of all layers as a picture; matplotlib is imported here only, when a picture is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm_deploy.config.sensitivity import SensitivityReport, UnitLoss
from nvlm_deploy.errors import UnsuitableError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg")
_PANELS = {"vision tower": ("vision", "projector"), "decoder": ("language", "lm_head")}
_AXIS = {"kl": "KL divergence from FP32, nats", "relative-error": "relative squared error of the output"}
_MARKERS = "osD^vPX*"
# Names of this many units fit below a panel.
_NAMED = 16


def check_plot(path: Path) -> None:
    """Check that a picture can be drawn, before anything is measured.

    Raises:
        UsageError: the name is not that of a picture.
        UnsuitableError: matplotlib is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"the plot {path} is no picture", hint=f"give a name that ends in {_SUFFIXES}")
    pyplot()


def write_plot(report: SensitivityReport, path: Path) -> None:
    """Draw the loss of every unit in every format, tower and decoder apart, on one logarithmic scale."""
    plt = pyplot()
    panels = {
        title: [unit for unit in report.units if unit.part in parts] for title, parts in _PANELS.items()
    }
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(10, 4.2),
        sharey=True,
        layout="constrained",
        width_ratios=[max(len(units), 3) for units in panels.values()],
    )
    styles = {label: (f"C{i}", _MARKERS[i % len(_MARKERS)]) for i, label in enumerate(report.labels())}
    for panel, (title, units) in zip(axes, panels.items(), strict=True):
        _draw(panel, units, styles)
        panel.set_title(title)
    axes[0].set_ylabel(_AXIS[report.measure])
    handles = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    ordered = [label for label in styles if label in handles]
    figure.legend([handles[label] for label in ordered], ordered, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(panel: Axes, units: list[UnitLoss], styles: dict[str, tuple[str, str]]) -> None:
    for label, (color, marker) in styles.items():
        options = [unit.option(label) for unit in units]
        points = [(i, o.loss) for i, o in enumerate(options) if o is not None and o.loss]
        if points:
            places, losses = zip(*points, strict=True)
            panel.plot(places, losses, color=color, marker=marker, markersize=5, linewidth=1.2, label=label)
    panel.set_yscale("log")
    panel.grid(axis="y", which="major", color="0.88")
    ticks = _ticks(units)
    panel.set_xticks(list(ticks), list(ticks.values()))
    panel.set_xlabel("layer")


def _ticks(units: list[UnitLoss]) -> dict[int, str]:
    """The first unit of every layer, or so many that their numbers fit, and the last, which has a name."""
    firsts: dict[str, int] = {}
    for place, unit in enumerate(units):
        short = unit.name.removeprefix("vision.layers.").removeprefix("language.layers.")
        firsts.setdefault(short.removeprefix("language.").split(".")[0], place)
    names = list(firsts)
    step = -(-len(names) // _NAMED)
    return {firsts[name]: name for name in [*names[: len(names) - step : step], names[-1]]}


def pyplot() -> Any:
    """Import matplotlib without a display.

    Raises:
        UnsuitableError: it is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise UnsuitableError(
            f"a plot needs {error.name}, which is not installed", hint="pip install 'nvlm-deploy[plots]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
