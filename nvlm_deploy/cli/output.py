"""What the verbs share: JSON and tables for stdout, byte counts, and progress bars on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from nvlm_deploy.config.manifest import PartSize
from nvlm_deploy.errors import UsageError
from nvlm_deploy.progress import ProgressCallback, no_progress

_DAY_S = 24 * 3600.0
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def print_json(data: Any) -> None:
    """Print `data` as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "") -> None:
    """Print `rows` in aligned columns on stdout; the columns in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo((indent + "  ".join(cells)).rstrip())


def print_sizes(sizes: Sequence[PartSize]) -> None:
    """Print bytes before (in 16 bits) and after, by part, with the total."""
    rows = [("weights", "before (16 bits)", "after", "ratio")]
    total = ("total", sum(size.before for size in sizes), sum(size.after for size in sizes))
    for part, before, after in [*((size.part, size.before, size.after) for size in sizes), total]:
        ratio = f"{after / before:.2f}" if before else "-"
        rows.append((part, human_bytes(before), human_bytes(after), ratio))
    print_table(rows, right=(1, 2, 3))


def note(text: str) -> None:
    """Say something on stderr that is no error."""
    click.echo(f"note: {text}", err=True)


def parse_size(option: str, text: str) -> int:
    """Return the bytes of `48GB` or `1.5 TB`, in powers of 1,000.

    Raises:
        UsageError: the text is no size; names the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|MB|GB|TB)", text.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"{option} '{text}' is no size", hint=f"for example {option} 48GB")
    return int(float(found[1]) * _UNITS[found[2]])


def human_bytes(size: float) -> str:
    """Return a size as people read it: `1.5 GB`, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Yield a callback that draws one bar per stage on stderr, or does nothing when it is no terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    # The speed is that of the whole run: pieces of work may be minutes apart.
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), speed_estimate_period=_DAY_S
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update
