"""Train the example checkpoint from nothing on generated documents.

    python examples/nvlm-d-tiny/train.py --work /tmp/nvlm-d-tiny

In the paper's order: first the tower and the projector learn to see, on one tile; then the decoder
learns to read out a tile; then to answer questions about pages of up to six tiles and a thumbnail,
first with the tower frozen, then as a whole, at last with more of what is hardest.
`train.jsonl` beside this file is the log of the run that made the checkpoint here. Killed runs
continue from the last saved state.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from nvlm_deploy.checkpoint import save_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models import NvlmD
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.synthetic.documents import KINDS, document
from nvlm_deploy.synthetic.shapes import ModelShape, released_style_config
from nvlm_deploy.synthetic.words import WORDS
from nvlm_deploy.train.batches import TRANSCRIBE, Batch, DocumentBatches
from nvlm_deploy.train.glyphs import GlyphHead
from nvlm_deploy.train.stage import StageProgress, StageSettings, run_stage
from nvlm_deploy.train.tokenizer import tokenizer_config, train_tokenizer

VOCAB_SIZE = 416
SHAPE = ModelShape(
    tile_size=112,
    vision_hidden=128,
    vision_intermediate=512,
    vision_layers=4,
    vision_heads=8,
    hidden=192,
    intermediate=512,
    layers=5,
    heads=6,
    kv_heads=2,
    vocab_size=VOCAB_SIZE,
    max_positions=2048,
)
STAGES = (
    StageSettings("read", steps=3000, max_lr=1e-3, min_lr=1e-4, warmup_steps=100, glyph_weight=1.0),
    StageSettings(
        "transcribe",
        steps=400,
        max_lr=1e-3,
        min_lr=8e-4,
        warmup_steps=100,
        glyph_weight=0.1,
        freeze=("vision",),
    ),
    StageSettings(
        "answer", steps=1500, max_lr=8e-4, min_lr=3e-4, warmup_steps=50, glyph_weight=0.1, freeze=("vision",)
    ),
    StageSettings("finetune", steps=1600, max_lr=3e-4, min_lr=1e-5, warmup_steps=50, glyph_weight=0.5),
    StageSettings("settle", steps=600, max_lr=4e-4, min_lr=1e-5, warmup_steps=30, glyph_weight=0.3),
    StageSettings("finish", steps=200, max_lr=2e-4, min_lr=5e-6, warmup_steps=10, glyph_weight=0.3),
)
SHARD_BYTES = 4_000_000
PAGES_PER_STAGE = 10_000_000


@dataclass(frozen=True, slots=True)
class Pages:
    """What a stage is shown; see `DocumentBatches`."""

    batch_size: int
    max_questions: int
    transcripts: float
    pool: int
    kinds: tuple[str, ...] = ()


PAGES = {
    # Mostly tiles full of text: much to read, little blank paper.
    "read": Pages(40, 0, 0.0, 1, kinds=("lines",) * 12 + KINDS),
    "transcribe": Pages(64, 1, 1.0, 1, kinds=("lines", "sign")),
    "answer": Pages(24, 4, 0.3, 8, kinds=(*KINDS, "lines")),
    "finetune": Pages(24, 4, 0.0, 8),
    "settle": Pages(24, 4, 0.0, 8, kinds=(*KINDS, "corners", "receipt", "table")),
    "finish": Pages(24, 4, 0.0, 8),
}


def write_config(directory: Path) -> None:
    """Write config, tokenizer and preprocessor files in the released layout."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_prompt_texts(), VOCAB_SIZE)
    bos, eos = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    shape = replace(SHAPE, bos_token_id=bos, eos_token_id=eos)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(tokenizer, SHAPE.max_positions))
    _write_json(directory / "config.json", released_style_config(shape))
    _write_json(
        directory / "preprocessor_config.json",
        {
            "crop_size": SHAPE.tile_size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": SHAPE.tile_size,
        },
    )


def _prompt_texts() -> Iterator[str]:
    """Everything of a prompt but the documents' words, which stay spelled letter by letter."""
    words = set(WORDS)
    for index in range(400):
        for exchange in document("train", index).exchanges:
            yield " ".join(w for w in exchange.question.rstrip("?").split() if w not in words) + "?"
    for tile in range(1, 7):
        yield f"<tile_{tile}><tile_global_thumbnail>"
    for _ in range(50):
        yield f"system\nAnswer the questions.user\nassistant\n<Image></Image>\n{TRANSCRIBE}"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def new_model(config: NvlmConfig, seed: int) -> NvlmD:
    """Random weights: normal with 0.02 for tables, torch's defaults for linears, layer scales of 1."""
    torch.manual_seed(seed)
    model = NvlmD(config)
    for table in (
        model.vision.class_embedding,
        model.vision.position_embedding,
        model.language.embed_tokens.weight,
        model.language.lm_head.weight,
    ):
        nn.init.normal_(table, std=0.02)
    for layer in model.vision.layers:
        nn.init.ones_(layer.layer_scale1)
        nn.init.ones_(layer.layer_scale2)
    return model


def stage_batches(stage: StageSettings, directory: Path, config: NvlmConfig, start: int) -> Iterator[Batch]:
    """Batches drawn by one worker process beside the trainer."""
    builder = PromptBuilder(Tokenizer.from_directory(directory), config)
    shown = PAGES[stage.name]
    data = DocumentBatches(
        builder,
        config,
        shown.batch_size,
        start,
        shown.max_questions,
        shown.transcripts,
        shown.pool,
        shown.kinds,
    )
    return iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=6))


@dataclass(slots=True)
class Run:
    """A training run whose state is kept in one file."""

    work: Path
    config: NvlmConfig
    model: NvlmD
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

    def train(self, last_stage: str) -> None:
        """Run the stages that are not finished, up to `last_stage`."""
        for number in range(self.stage, 1 + [s.name for s in STAGES].index(last_stage)):
            if number != self.stage:
                self.stage, self.progress = number, StageProgress()
            stage = STAGES[number]
            self.model.requires_grad_(True)
            first_page = number * PAGES_PER_STAGE + self.progress.step * PAGES[stage.name].batch_size
            batches = stage_batches(stage, self.work / "checkpoint", self.config, first_page)
            run_stage(
                self.model, self.head, batches, stage, self.progress, self.work / "train.jsonl", self.save
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="state and log; the result is WORK/checkpoint"
    )
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--stop-after", choices=[s.name for s in STAGES], default=STAGES[-1].name)
    options = parser.parse_args()
    directory = options.work / "checkpoint"
    write_config(directory)
    config = NvlmConfig.from_directory(directory)
    model = new_model(config, options.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    run = Run(options.work, config, model, GlyphHead(config.language.hidden_size))
    run.restore()
    run.train(options.stop_after)
    for old in directory.glob("model*"):
        old.unlink()
    save_model(model.state_dict(), config, directory, max_shard_bytes=SHARD_BYTES)


if __name__ == "__main__":
    main()
