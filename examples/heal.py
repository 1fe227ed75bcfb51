"""Heal the example checkpoint for a recipe, and count held-out answers before and after: `make heal`.

The checkpoint in FP32, its engine and the engine of the healed checkpoint answer the same pages.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from nvlm_deploy.cli.main import run as nvlm_build
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.training import read_training_config
from nvlm_deploy.eval.answerers import open_answerer
from nvlm_deploy.eval.exact_match import exact_match
from nvlm_deploy.synthetic.documents import samples
from nvlm_deploy.train.run import run_training

CHECKPOINT = Path(__file__).parent / "nvlm-d-tiny"


def engine(checkpoint: Path, recipe: str, output: Path) -> Path:
    """Build an engine for this machine, in the place of an older one."""
    shutil.rmtree(output, ignore_errors=True)
    options = ["--recipe", recipe, "--target", "cpu-x86", "--no-verify", "-o", str(output)]
    if code := nvlm_build(["engine", str(checkpoint), *options]):
        raise SystemExit(code)
    return output


def share_right(source: Path, count: int) -> float:
    """Share of `count` held-out pages that a checkpoint or an engine answers exactly."""
    pages = samples("heldout", count, 0, NvlmConfig.from_directory(source).tile_size)
    return exact_match(pages, open_answerer(source)).share


def main() -> None:
    """Print the three shares, and how much of the loss has come back."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipe", default=str(Path(__file__).with_name("int4-per-channel.yaml")))
    parser.add_argument("--count", type=int, default=300, help="held-out pages")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    overrides = [
        f"model={CHECKPOINT}",
        f"heal.recipe={options.recipe}",
        f"output_dir={options.output / 'run'}",
        *options.overrides,
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    before = share_right(engine(CHECKPOINT, options.recipe, options.output / "engine"), options.count)
    print(f"{Path(options.recipe).stem:16} {100 * before:5.1f} %", flush=True)
    config, folder = read_training_config("tiny-heal", overrides)
    healed = run_training(config, folder).output
    assert healed is not None, "the run was stopped; the same command goes on"
    after = share_right(engine(healed, options.recipe, options.output / "healed"), options.count)
    print(f"{'healed':16} {100 * after:5.1f} %", flush=True)
    full = share_right(CHECKPOINT, options.count)
    print(f"{'FP32':16} {100 * full:5.1f} %")
    rows = [json.loads(line) for line in (options.output / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    print(f"KL: {first['loss']:.4f} up to step {first['step']}, {last['loss']:.4f} up to step {last['step']}")
    if full > before:
        print(f"recovered: {100 * (after - before) / (full - before):.0f} % of the loss")


if __name__ == "__main__":
    main()
