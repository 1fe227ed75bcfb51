"""The tables of `nvlm-build calibrate --statistics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from nvlm_deploy.calibration import TokenClass
from nvlm_deploy.cli.output import print_table
from nvlm_deploy.quantization.statistics import ActivationStatistics, ClassStatistics, InputStatistics

_WORST = 8


def print_statistics(statistics: ActivationStatistics, against: str | None) -> None:
    """Print the parts of the model, and the linears that scales serve worst; `against` is a set's name."""
    _print_parts(statistics, against)
    source = "text" if against is None else against
    clipped = [each for each in statistics.inputs if _clipped(each, against)]
    if clipped:
        worst = _worst(clipped, lambda each: _clipped(each, against) or 0.0)
        click.echo(f"\nmost clipped by a scale from {source} alone:")
        _print_clipped(worst, against)
    click.echo("\nwidest range, which a scale for all of it resolves worst:")
    _print_widest(_worst(statistics.inputs, _range))


def _print_parts(statistics: ActivationStatistics, against: str | None) -> None:
    clipping = ["clipped by text", "clipped unseen"]
    if against is not None:
        clipping.append(f"clipped by {against}")
    headings = ("part", "class", "values", "amax", "rms", "outliers", *clipping)
    rows: list[Sequence[str]] = [headings]
    for part, classes in statistics.parts.items():
        for name, each in classes.items():
            numbers = (f"{each.values:,}", f"{each.amax:.4g}", f"{each.rms:.3g}")
            counts = (each.outliers, each.clipped_by_text, each.clipped_unseen, each.clipped_against)
            shares = [_percent(each.share(count)) for count in counts]
            rows.append((part, name, *numbers, *shares[: len(headings) - 5]))
    print_table(rows, right=range(2, len(headings)))
    click.echo(
        "\noutliers: beyond 20 times the root mean square. clipped by text: beyond the largest magnitude of "
        "text tokens.\nclipped unseen: beyond the largest magnitude of all other classes. Shares of values."
    )


def _print_clipped(worst: Sequence[InputStatistics], against: str | None) -> None:
    kinds = [kind.name.lower() for kind in TokenClass if against is not None or kind is not TokenClass.TEXT]
    rows: list[Sequence[str]] = [("inputs of", f"amax of {against or 'text'}", "of all", *kinds)]
    for each in worst:
        limit = each.classes["text"].amax if against is None else each.against_amax
        shares = (_clipped_of(each.classes.get(name), against) for name in kinds)
        rows.append((_linears(each), f"{limit:.4g}", f"{each.everything.amax:.4g}", *shares))
    print_table(rows, right=range(1, len(rows[0])))


def _print_widest(worst: Sequence[InputStatistics]) -> None:
    rows = [("inputs of", "amax", "rms", "amax / rms", "class of amax")]
    for each in worst:
        everything = each.everything
        largest = max(each.classes, key=lambda name: each.classes[name].amax)
        numbers = (f"{everything.amax:.4g}", f"{everything.rms:.3g}", f"{_range(each):,.0f}")
        rows.append((_linears(each), *numbers, largest))
    print_table(rows, right=(1, 2, 3))


def _worst(
    inputs: Sequence[InputStatistics], key: Callable[[InputStatistics], float]
) -> list[InputStatistics]:
    return sorted(inputs, key=key, reverse=True)[:_WORST]


def _range(each: InputStatistics) -> float:
    everything = each.everything
    return everything.amax / everything.rms if everything.rms else 0.0


def _linears(each: InputStatistics) -> str:
    """All linears of a group in one name: `language.layers.0.attention.q_proj, k_proj, v_proj`."""
    first, *others = each.linears
    return ", ".join([first, *(name.rpartition(".")[2] for name in others)])


def _clipped(each: InputStatistics, against: str | None) -> float | None:
    """Share of the values that a scale from text, or from another set, would clip."""
    if against is None:
        return each.clipped_by_text
    return each.everything.share(each.everything.clipped_against)


def _clipped_of(statistics: ClassStatistics | None, against: str | None) -> str:
    if statistics is None:
        return "-"
    count = statistics.clipped_by_text if against is None else statistics.clipped_against
    return _percent(statistics.share(count))


def _percent(share: float | None) -> str:
    """Three digits, but no `0` for what is little and not nothing."""
    if share is None:
        return "-"
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-6 else "< 0.0001 %"
