"""The times to the first token of NVLM-D, X and H as a picture."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.bench.variant_report import VariantReport
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
