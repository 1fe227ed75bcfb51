"""NVLM-D, X and H as pictures: times to the first token, training throughput."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.bench.variant_report import VariantReport
from nvlm_deploy.bench.variant_training import TrainingReport
from nvlm_deploy.sensitivity.plot import pyplot

_STAGES = (
    ("vision", "tower and projector", "0.75"),
    ("states", "keys and values of tiles", "C1"),
    ("prefill", "decoder", "C0"),
)
_BAR = 0.26


def draw_variants(report: VariantReport, path: Path) -> None:
    """Draw a bar for every variant and number of tiles, in stages.

    Raises:
        UnsuitableError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    counts = report.workload.tiles
    for number, row in enumerate(report.rows()):
        places = [i + (number - 1) * _BAR for i in range(len(counts))]
        bottoms = [0.0] * len(counts)
        for name, label, color in _STAGES:
            heights = [row["stages_ms"][n][name] / 1000 for n in counts]
            shown = label if number == 0 else None
            axes.bar(places, heights, _BAR * 0.92, bottoms, color=color, label=shown)
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
        for place, top in zip(places, bottoms, strict=True):
            axes.annotate(row["variant"], (place, top), ha="center", va="bottom")
    axes.set_xticks(range(len(counts)), [str(n) for n in counts])
    axes.set_xlabel("tiles of the image")
    axes.set_ylabel("seconds to the first token")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_training(report: TrainingReport, path: Path) -> None:
    """Draw how many times as many samples a second as the first variant each takes, here and in the paper.

    Raises:
        UnsuitableError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    rows = report.rows()
    sources = (("x", f"here, {report.workload.shape}", "C0"), ("paper_x", "paper, 34B on 128 H100", "0.75"))
    for number, (key, label, color) in enumerate(sources):
        places = [i + (number - 0.5) * 0.38 for i in range(len(rows))]
        bars = axes.bar(places, [row[key] for row in rows], 0.36, color=color, label=label)
        axes.bar_label(bars, fmt="%.2f")
    axes.set_xticks(range(len(rows)), [f"NVLM-{row['variant']}" for row in rows])
    axes.set_ylabel("samples a second, NVLM-D = 1")
    axes.set_ylim(0, 1.35 * max(max(row["x"], row["paper_x"]) for row in rows))
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)
