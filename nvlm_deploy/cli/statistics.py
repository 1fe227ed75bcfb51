"""The tables of `nvlm-build calibrate --statistics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from nvlm_deploy.calibration import TokenClass
from nvlm_deploy.cli.output import print_table
from nvlm_deploy.quantization.statistics import ActivationStatistics, ClassStatistics, InputStatistics

_WORST = 8


def print_statistics(statistics: ActivationStatistics) -> None:
    """Print the parts of the model, and the linears that scales serve worst."""
    _print_parts(statistics)
    clipped = [each for each in statistics.inputs if each.clipped_by_text]
    if clipped:
        click.echo("\nmost clipped by a text-only calibration:")
        _print_clipped(_worst(clipped, lambda each: each.clipped_by_text or 0.0))
    click.echo("\nwidest range, which a scale for all of it resolves worst:")
    _print_widest(_worst(statistics.inputs, _range))


def _print_parts(statistics: ActivationStatistics) -> None:
    headings = ("part", "class", "values", "amax", "rms", "outliers", "clipped by text", "clipped unseen")
    rows: list[Sequence[str]] = [headings]
    for part, classes in statistics.parts.items():
        for name, each in classes.items():
            rows.append(
                (
                    part,
                    name,
                    f"{each.values:,}",
                    f"{each.amax:.4g}",
                    f"{each.rms:.3g}",
                    _percent(each.share(each.outliers)),
                    _percent(each.share(each.clipped_by_text)),
                    _percent(each.share(each.clipped_unseen)),
                )
            )
    print_table(rows, right=range(2, len(headings)))
    click.echo(
        "\noutliers: beyond 20 times the root mean square. clipped by text: beyond the largest magnitude of "
        "text tokens.\nclipped unseen: beyond the largest magnitude of all other classes. Shares of values."
    )


def _print_clipped(worst: Sequence[InputStatistics]) -> None:
    others = [kind.name.lower() for kind in TokenClass if kind is not TokenClass.TEXT]
    rows = [("inputs of", "amax of text", "of all", *others)]
    for each in worst:
        shares = (_clipped(each.classes.get(name)) for name in others)
        amaxes = (f"{each.classes['text'].amax:.4g}", f"{each.everything.amax:.4g}")
        rows.append((_linears(each), *amaxes, *shares))
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


def _clipped(statistics: ClassStatistics | None) -> str:
    return "-" if statistics is None else _percent(statistics.share(statistics.clipped_by_text))


def _percent(share: float | None) -> str:
    """Three digits, but no `0` for what is little and not nothing."""
    if share is None:
        return "-"
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-6 else "< 0.0001 %"
