"""The page stands alone and shows what failed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from nvlm_deploy.errors import VerificationError
from nvlm_deploy.verify.checks import Check, TaskRow
from nvlm_deploy.verify.compare import LayerFigures, Reaction
from nvlm_deploy.verify.html import page, write_page
from nvlm_deploy.verify.report import Example, VerifyReport, worst_first
from nvlm_deploy.verify.svg import Line, cosine_plot
from nvlm_deploy.verify.weights import WeightFigure

VOID = {"meta", "br", "img"}


def example(label: str, *, lost: bool, kl: float) -> Example:
    image = Image.new("RGB", (500, 300), "white")
    return Example(label, "ocr", "What <b>now</b>?", "4", "5", True, not lost, kl, 1.0, image)


def report(figure: float) -> VerifyReport:
    last = "language.layers.1.mlp"
    names = ("language.embeddings", "language.layers.1.attention", last)
    cosines = ((1.0, None), (0.99, 0.97), (figure, figure))
    return VerifyReport(
        subject="a & b",
        against="checkpoint",
        kind="engine",
        recipe="int8",
        target="cpu-x86",
        checkpoint_fingerprint="f" * 64,
        versions={"numpy": "2"},
        seconds=1.0,
        checks=(
            *(Check(f"tower, cosine of {kind}", "layers", 1, 0.9, True) for kind in ("stream", "branch")),
            Check("decoder, cosine of the stream", "layers", figure, 0.9, True, last),
            Check("decoder, cosine of a branch", "layers", figure, 0.8, True, last),
        ),
        weights=(WeightFigure("language.lm_head.weight", 0.01),),
        layers=(
            LayerFigures("vision.embeddings", "tower", 1.0, None, True),
            *(LayerFigures(n, "decoder", c, b, True) for n, (c, b) in zip(names, cosines, strict=True)),
        ),
        tasks=(TaskRow("ocr", 2, 2, 1),),
        reaction=Reaction(2, 1.0, 1.0, 0, 0),
        examples=worst_first([example("close", lost=False, kl=0.5), example("lost", lost=True, kl=0.1)]),
    )


class Balanced(HTMLParser):
    """Fails on tags that are not closed in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_page(report(0.5), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "script" not in parser.seen
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', text)) == {"data:"}
    assert set(re.findall(r"https?://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}


def test_what_users_wrote_is_escaped() -> None:
    text = page(report(0.5))
    assert "What &lt;b&gt;now&lt;/b&gt;?" in text
    assert "a &amp; b" in text


def test_the_page_says_what_failed() -> None:
    assert "2 of 4 checks failed" in page(report(0.5))
    assert "all 4 checks passed" in page(report(0.95))


def test_lost_answers_come_first() -> None:
    text = page(report(0.5))
    assert text.index("lost &nbsp;") < text.index("close &nbsp;")


def test_a_plot_is_valid_and_marks_what_is_below_the_limit() -> None:
    lines = [Line("stream", [1.0, 0.99, 0.2], 0.9), Line("branch", [None, -1.0, 0.99], 0.9)]
    root = ElementTree.fromstring(cosine_plot("A plot", ["x.y.0.mlp", "x.y.1.mlp", "x.y.2.mlp"], lines))
    points = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(points) == 5
    assert sum(point.get("fill") == "#b3261e" for point in points) == 2
    width, height = (float(each) for each in str(root.get("viewBox")).split()[2:])
    assert all(0 < float(str(p.get("cx"))) < width and 0 < float(str(p.get("cy"))) < height for p in points)
    heights = [float(str(point.get("cy"))) for point in points[:3]]
    assert heights == sorted(heights, reverse=True)


def test_a_report_that_failed_raises_with_every_failure() -> None:
    report(0.95).require_passed()
    with pytest.raises(VerificationError, match="2 of 4 checks failed") as caught:
        report(0.5).require_passed()
    assert (
        "cosine of the stream at language.layers.1.mlp is 0.5, at least 0.9 is needed" in caught.value.message
    )
    assert caught.value.exit_code == 4
    assert report(0.5).summary()["failed"] == ["decoder, cosine of the stream", "decoder, cosine of a branch"]
