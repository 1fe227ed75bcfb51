"""Draw `curve.png` from an example's `train.jsonl`: python examples/plot_training.py examples/nvlm-d-tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CURVES = {
    "glyphs_read": "characters placed right, by the thrown-away head",
    "tokens_right": "answer tokens right",
}


def main(example: Path) -> None:
    """Plot both shares over the steps of all stages, with the stages' borders."""
    rows = [json.loads(line) for line in (example / "train.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    offsets, total = {}, 0
    for row in rows:
        offsets.setdefault(row["stage"], total)
        total = offsets[row["stage"]] + row["step"]
    for key, label in CURVES.items():
        points = [(offsets[row["stage"]] + row["step"], 100 * row[key]) for row in rows if key in row]
        axes.plot(*zip(*points, strict=True), label=label)
    for number, (stage, start) in enumerate(offsets.items()):
        axes.axvline(start, color="0.8", linewidth=1)
        axes.text(start, 108 - 5 * (number % 2), f" {stage}", color="0.4")
    axes.set(xlabel="step", ylabel="% of the training batch", ylim=(0, 115), xlim=(0, total))
    axes.legend(loc="lower right")
    figure.savefig(example / "curve.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
