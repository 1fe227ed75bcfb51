"""Train the examples of NVLM-X and NVLM-H from the parts of the NVLM-D example.

    python examples/cross_attention/train.py --variant X --work /tmp/nvlm-x-tiny

As in the paper, tower and language model are there already, and what is new are the cross-attention layers
and the projector. With the tower frozen, pages of one tile come first, then questions about pages of up to
six tiles and a thumbnail; then everything is trained. Killed runs continue from the last saved state.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from nvlm_deploy.checkpoint import save_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models import Nvlm, load_model, new_model
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.synthetic.documents import KINDS
from nvlm_deploy.train.batches import Batch, DocumentBatches
from nvlm_deploy.train.glyphs import GlyphHead
from nvlm_deploy.train.stage import StageProgress, StageSettings, run_stage

PARTS = Path(__file__).parent.parent / "nvlm-d-tiny"
SHARD_BYTES = 4_000_000
PAGES_PER_STAGE = 10_000_000
# Of the stages below, as the examples were trained.
STEPS = {"X": (400, 1500, 1100, 1000, 2000), "H": (400, 1500, 1100, 500, 750)}
# Pages that the NVLM-D example was not trained on.
FIRST_PAGE = 100_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """What is trained in which way, and what it is shown; see `DocumentBatches`."""

    settings: StageSettings
    batch_size: int
    max_questions: int
    transcripts: float
    pool: int
    kinds: tuple[str, ...]


def stages(steps: tuple[int, ...]) -> tuple[Stage, ...]:
    transcribe, answer, settle, reread, finish = steps
    documents = (24, 4, 0.0, 8, (*KINDS, "corners", "receipt", "table"))
    return (
        Stage(
            StageSettings("transcribe", transcribe, 1e-3, 8e-4, 50, 0.0, freeze=("vision",)),
            *(48, 1, 1.0, 1, ("lines", "sign")),
        ),
        Stage(
            StageSettings("answer", answer, 8e-4, 2e-4, 50, 0.0, freeze=("vision",)),
            *(24, 4, 0.3, 8, (*KINDS, "corners", "lines")),
        ),
        Stage(StageSettings("settle", settle, 4e-4, 5e-6, 30, 0.1), *documents),
        Stage(
            StageSettings("reread", reread, 8e-4, 4e-4, 30, 0.1),
            *(48, 1, 1.0, 1, ("lines", "sign")),
        ),
        Stage(StageSettings("finish", finish, 5e-4, 5e-6, 30, 0.1), *documents),
    )


def write_config(directory: Path, variant: str, layers: list[int]) -> None:
    """The NVLM-D example's files, with the section that makes it another variant."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(PARTS / name, directory / name)
    config = json.loads((PARTS / "config.json").read_text(encoding="utf-8"))
    del config["auto_map"]
    config |= {
        "architectures": [f"NVLM_{variant}"],
        "model_type": f"NVLM_{variant}",
        "cross_attention_config": {"layers": layers},
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def assemble(config: NvlmConfig, seed: int) -> Nvlm:
    """Tower, decoder and, where it fits, projector of the NVLM-D example; the rest is new."""
    torch.manual_seed(seed)
    model = new_model(config)
    fresh = model.state_dict()
    for name, tensor in load_model(PARTS).state_dict().items():
        if name in fresh and fresh[name].shape == tensor.shape:
            fresh[name] = tensor
    model.load_state_dict(fresh)
    return model


@dataclass(slots=True)
class Run:
    """A training run whose state is kept in one file."""

    work: Path
    config: NvlmConfig
    model: Nvlm
    head: GlyphHead
    stage: int = 0
    progress: StageProgress = field(default_factory=StageProgress)

    def save(self, progress: StageProgress) -> None:
        """Replace the state file in one step."""
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "stage": self.stage,
            "step": progress.step,
            "optimizer": progress.optimizer,
        }
        torch.save(state, self.work / "state.tmp")
        (self.work / "state.tmp").replace(self.work / "state.pt")

    def restore(self) -> None:
        """Continue from the state file if there is one."""
        if (self.work / "state.pt").exists():
            state = torch.load(self.work / "state.pt", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.head.load_state_dict(state["head"])
            self.stage = state["stage"]
            self.progress = StageProgress(state["step"], state["optimizer"])

    def train(self, plan: tuple[Stage, ...]) -> None:
        """Run the stages that are not finished."""
        for number in range(self.stage, len(plan)):
            if number != self.stage:
                self.stage, self.progress = number, StageProgress()
            stage = plan[number]
            self.model.requires_grad_(True)
            run_stage(
                self.model,
                self.head,
                self._batches(stage, number),
                stage.settings,
                self.progress,
                self.work / "train.jsonl",
                self.save,
            )

    def _batches(self, stage: Stage, number: int) -> Iterator[Batch]:
        first = FIRST_PAGE + number * PAGES_PER_STAGE + self.progress.step * stage.batch_size
        builder = PromptBuilder(Tokenizer.from_directory(self.work / "checkpoint"), self.config)
        data = DocumentBatches(
            builder,
            self.config,
            stage.batch_size,
            first,
            stage.max_questions,
            stage.transcripts,
            stage.pool,
            stage.kinds,
        )
        return iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=6))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=["X", "H"], required=True)
    parser.add_argument(
        "--work", type=Path, required=True, help="state and log; the result is WORK/checkpoint"
    )
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--steps", type=int, nargs=5, help="default: as the example was trained")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    directory = options.work / "checkpoint"
    write_config(directory, options.variant, options.layers)
    config = NvlmConfig.from_directory(directory)
    model = assemble(config, options.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    run = Run(options.work, config, model, GlyphHead(config.language.hidden_size))
    run.restore()
    run.train(stages(tuple(options.steps or STEPS[options.variant])))
    for old in directory.glob("model*"):
        old.unlink()
    save_model(model.state_dict(), config, directory, max_shard_bytes=SHARD_BYTES)


if __name__ == "__main__":
    main()
