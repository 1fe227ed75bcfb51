"""The picture of a report."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from nvlm_deploy.config.sensitivity import SensitivityReport
from nvlm_deploy.sensitivity.plot import check_plot, write_plot

pytest.importorskip("matplotlib", reason="the plots extra is not installed")


def test_a_plot_shows_every_format_in_its_color(report: SensitivityReport, tmp_path: Path) -> None:
    path = tmp_path / "losses.png"
    check_plot(path)
    write_plot(report, path)
    with Image.open(path) as image:
        assert image.width > 2 * image.height
        counted = {color: count for count, color in image.convert("RGB").getcolors(1 << 16) or []}
    # matplotlib's first colors; the curves of three formats, and none of a fourth.
    for color in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):
        assert counted.get(color, 0) > 100, color
    assert (214, 39, 40) not in counted


def test_an_svg_names_its_layers(report: SensitivityReport, tmp_path: Path) -> None:
    path = tmp_path / "losses.svg"
    write_plot(report, path)
    text = path.read_text()
    for name in ("projector", "lm_head", "vision tower", "decoder", "int4 g32 rtn"):
        assert f"<!-- {name} -->" in text, name
