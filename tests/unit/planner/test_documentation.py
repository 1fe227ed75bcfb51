"""docs/planning.md says what the code says."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.cli.catalogs import load_catalog
from nvlm_deploy.cli.targets import target_row
from nvlm_deploy.config.target import Target, load_target
from tests.unit.planner.conftest import Planner
from tests.unit.planner.worked import CASES, HEADINGS, row


def tables(repository: Path) -> list[list[tuple[str, ...]]]:
    """Rows of every table of the page, without the line of dashes."""
    found: list[list[tuple[str, ...]]] = [[]]
    for line in (repository / "docs" / "planning.md").read_text().splitlines():
        if not line.startswith("|"):
            found.append([])
        elif not line.startswith("|---"):
            found[-1].append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return [table for table in found if table]


def test_the_table_of_targets(repository: Path) -> None:
    rows = [target_row(target) for target in load_catalog("target", Target)]
    assert tables(repository)[0][1:] == [(f"`{name}`", *figures) for name, *figures in rows]


def test_the_worked_table(repository: Path, plan_72b: Planner) -> None:
    headings, *rows = tables(repository)[-1]
    assert headings == HEADINGS
    assert rows == [row(plan_72b(recipe, target, tp=tp)) for recipe, target, tp in CASES]


def test_the_table_of_efficiencies(repository: Path) -> None:
    names = {
        "AGX Orin": "jetson-agx-orin-64gb",
        "Orin NX": "jetson-orin-nx-16gb",
        "Orin Nano": "jetson-orin-nano-8gb",
        "AGX Thor": "jetson-agx-thor-128gb",
        "data center": "h100-80gb",
        "GeForce, RTX PRO": "rtx-5090-32gb",
        "CPU": "cpu-x86",
    }
    table = next(each for each in tables(repository) if each[0][1] == "decode")
    for name, *figures, _ in table[1:]:
        efficiency = load_target(names[name]).efficiency
        shares = (efficiency.decode, efficiency.prefill, efficiency.vision)
        assert figures == [f"{share * 100:.0f} %" for share in shares], name
