"""`nvlm-build verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from nvlm_deploy.verify.report import VerifyReport

_SAMPLES, _QUICK_SAMPLES = 40, 10


@dataclass(frozen=True, slots=True)
class VerifyCommand:
    """The parsed command line."""

    subject: Path
    against: Path
    samples: int | None
    quick: bool
    probes: Path | None
    page: Path | None
    device: str
    reference_device: str | None
    threads: int | None
    memory: Literal["fast", "mapped"]
    as_json: bool


@click.command()
@click.argument("subject", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="CHECKPOINT",
    required=True,
    type=click.Path(path_type=Path),
    help="The released checkpoint that BUNDLE was built from.",
)
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=5),
    help=f"Questions about images; {_SAMPLES} by default.",
)
@click.option("--quick", is_flag=True, help=f"A first look: {_QUICK_SAMPLES} questions.")
@click.option(
    "--probes",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path),
    help="Ask these questions instead of generated ones: those of nvlm-train export-bundle, or your own.",
)
@click.option(
    "--report",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page with every layer and the worst examples.",
)
@click.option(
    "--device",
    metavar="DEVICE",
    default="cpu",
    show_default=True,
    help="Of the engine and of the reference: cpu, cuda or cuda:N.",
)
@click.option("--reference-device", metavar="DEVICE", help="Of the reference, if it is another.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Of the engine. Default: all cores.")
@click.option(
    "--memory",
    type=click.Choice(["fast", "mapped"]),
    default="fast",
    show_default=True,
    help="mapped: leave the engine's weights in the file, for models larger than memory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(**options: Any) -> None:
    """Hold an engine against the checkpoint that it was built from.

    BUNDLE is an engine bundle, or a quantized checkpoint, which then computes in PyTorch. The reference is
    CHECKPOINT in FP32, streamed: one layer is in memory at a time. The limits are in the recipe's section
    `verify`. The result goes into the bundle's manifest; the exit code is 4 if a check fails.
    """
    from nvlm_deploy.cli.output import note, print_json, progress_bars
    from nvlm_deploy.errors import UsageError
    from nvlm_deploy.pipeline.verify import VerifyOptions
    from nvlm_deploy.pipeline.verify import verify as run_verification

    command = VerifyCommand(**options)
    if command.quick and command.samples is not None:
        raise UsageError("--quick and --samples exclude each other")
    if command.probes is not None and (command.quick or command.samples is not None):
        raise UsageError("--probes says what is asked: leave out --quick and --samples")
    samples = command.samples or (_QUICK_SAMPLES if command.quick else _SAMPLES)
    reference = command.reference_device or command.device
    wanted = VerifyOptions(
        samples, reference, command.threads, command.memory, command.device, command.probes
    )
    with progress_bars() as progress:
        report = run_verification(command.subject, command.against, wanted, progress)
    print_json(report.to_dict()) if command.as_json else _print_report(report)
    if command.page is not None:
        from nvlm_deploy.verify.html import write_page

        write_page(report, command.page)
        note(f"the report is in {command.page}")
    report.require_passed()


def _print_report(report: VerifyReport) -> None:
    from nvlm_deploy.cli.output import print_table
    from nvlm_deploy.verify.checks import show

    rows = [("check", "figure", "limit", "", "where", "")]
    for check in report.checks:
        limit = f"{'>=' if check.at_least else '<='} {show(check.limit)}"
        verdict = "ok" if check.passed else "FAILED"
        rows.append((check.name, show(check.figure), limit, verdict, check.place, check.note))
    print_table(rows, right=(1,))
    click.echo()
    verdict = "passed" if report.passed else f"failed {len(report.failed)} of {len(report.checks)} checks"
    click.echo(f"{report.subject}: {verdict}, in {report.seconds:.1f} s")
