"""The report as one HTML file: no scripts, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from nvlm_deploy.verify.checks import Check, show
from nvlm_deploy.verify.report import Example, VerifyReport
from nvlm_deploy.verify.svg import Line, cosine_plot, legend

_EXAMPLES = 12
_THUMBNAIL = 224
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22272e; background: #fff; max-width: 960px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid #e3e6ea;
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; font-weight: 600; }
.ok { background: #e2f3e6; color: #1c6b33; } .failed { background: #fbe3e1; color: #8f1d16; }
.quiet { color: #68717c; } svg { width: 100%; height: auto; }
.narrow { width: auto; }
.examples { display: flex; flex-wrap: wrap; gap: 1rem; }
.example { flex: 1 1 200px; max-width: 290px; border: 1px solid #e3e6ea; border-radius: 6px;
  padding: .7rem; font-size: 13px; overflow-wrap: anywhere; }
.example img { max-width: 100%; border: 1px solid #e3e6ea; }
"""


def write_page(report: VerifyReport, path: Path) -> None:
    """Write the page for `report`.

    Raises:
        OSError: `path` cannot be written.
    """
    path.write_text(page(report), encoding="utf-8")


def page(report: VerifyReport) -> str:
    """The page's text."""
    title = escape(f"Verification of {report.subject}")
    sections = (
        _head(report),
        _checks(report.checks),
        _plots(report),
        _tasks(report),
        _examples(report.examples),
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n{''.join(sections)}</body></html>\n"
    )


def _head(report: VerifyReport) -> str:
    count = f"{len(report.failed)} of {len(report.checks)} checks failed"
    text = f"all {len(report.checks)} checks passed" if report.passed else count
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    kind = "Engine" if report.kind == "engine" else "Quantized checkpoint"
    facts = (
        f"recipe {report.recipe}, target {report.target}; checkpoint {report.checkpoint_fingerprint[:16]}; "
        f"{len(report.examples)} prompts in {report.seconds:.1f} s; {versions}"
    )
    return (
        f"<h1>{kind} {escape(report.subject)}</h1>\n"
        f"<p>held against {escape(report.against)} in FP32 &nbsp; {_verdict(report.passed, text)}</p>\n"
        f'<p class="quiet">{escape(facts)}</p>\n'
    )


def _checks(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks:
        limit = f"{'≥' if check.at_least else '≤'} {show(check.limit)}"
        where = escape(", ".join(text for text in (check.place, check.note) if text))
        rows.append(
            f"<tr><td>{_verdict(check.passed)}</td><td>{escape(check.name)}</td>"
            f'<td class="number">{show(check.figure)}</td><td class="number">{limit}</td>'
            f'<td class="quiet">{where}</td></tr>'
        )
    numbers = '<th class="number">figure</th><th class="number">limit</th>'
    head = f"<tr><th></th><th>check</th>{numbers}<th>where, and on how much</th></tr>"
    return f"<h2>Checks</h2>\n<table>{head}{''.join(rows)}</table>\n"


def _plots(report: VerifyReport) -> str:
    """One plot for tower and projector, one for the decoder."""
    names = ("residual stream", "what the branch adds")
    text = [
        "<h2>Layers</h2>\n<p>The worst place counts; a branch that differs points at the layer at fault, and "
        f"what comes behind it sees broken inputs. Limits are dashed. {legend(names)}</p>\n"
    ]
    for title, parts in (("Vision tower and projector", ("tower", "projector")), ("Decoder", ("decoder",))):
        layers = [layer for layer in report.layers if layer.part in parts]
        limits = _limits(report.checks, parts[0])
        lines = (
            Line(names[0], [layer.cosine for layer in layers], limits[0]),
            Line(names[1], [layer.branch for layer in layers], limits[1]),
        )
        plot = cosine_plot(title, [layer.name for layer in layers], lines)
        text.append(f"<h3>{title}</h3>\n{plot}\n")
    return "".join(text)


def _limits(checks: Sequence[Check], part: str) -> tuple[float, float]:
    found = [check.limit for check in checks if check.group == "layers" and check.name.startswith(f"{part},")]
    stream, branch = found
    return stream, branch


def _tasks(report: VerifyReport) -> str:
    rows = "".join(
        f'<tr><td>{escape(row.row)}</td><td class="number">{row.asked}</td>'
        f'<td class="number">{row.reference_right}</td><td class="number">{row.subject_right}</td></tr>'
        for row in report.tasks
    )
    head = "".join(f'<th class="number">{name}</th>' for name in ("asked", "reference right", "right"))
    return f'<h2>Exact match</h2>\n<table class="narrow"><tr><th>row</th>{head}</tr>{rows}</table>\n'


def _examples(examples: Sequence[Example]) -> str:
    cards = "".join(_card(example) for example in examples[:_EXAMPLES])
    return (
        "<h2>Worst examples</h2>\n<p>Lost answers first, then those whose probabilities differ most.</p>\n"
        f'<div class="examples">{cards}</div>\n'
    )


def _card(example: Example) -> str:
    image = (
        ""
        if example.image is None
        else f'<img alt="{escape(example.label)}" src="{_data_url(example.image)}">'
    )
    given = "" if example.given is None else f"<br>given: <b>{escape(example.given)}</b>"
    lost = example.reference_right and not example.subject_right
    about = f"{escape(example.label)} &nbsp; KL {show(example.kl)}"
    return (
        f'<div class="example">{image}<p class="quiet">{about}</p>'
        f"<p>{escape(example.question)}<br>right: <b>{escape(example.expected)}</b>{given}</p>"
        f"{_verdict(False, 'lost') if lost else ''}</div>"
    )


def _data_url(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    with io.BytesIO() as file:
        small.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _verdict(passed: bool, text: str | None = None) -> str:
    word = "ok" if passed else "failed"
    return f'<span class="verdict {word}">{text or word}</span>'
