"""Training throughput of NVLM-D, X and H at equal width, as in the paper's Table 3: the tower is frozen.

Everyone takes a step on the same image and a text of the same length in turn, round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nvlm_deploy.bench.requests import BenchRequest, bench_request
from nvlm_deploy.bench.run import speed_up
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models import CrossTiles, new_model
from nvlm_deploy.preprocess.tiles import normalize_tiles
from nvlm_deploy.progress import ProgressCallback

Row = tuple[str, ...]

PAPER_SAMPLES_PER_S = {"D": 28.8, "X": 50.6, "H": 36.2}
"""Table 3: 34B, 1,024 tokens of text, six tiles and a thumbnail, 128 H100."""


@dataclass(frozen=True, slots=True)
class TrainingWorkload:
    """One sample a step: an image of `tiles` tiles, thumbnail included, and a conversation about it.

    text_tokens: of the conversation, prompt and tags included, image placeholders not.
    """

    shape: str = "nvlm-d-0.1b"
    text_tokens: int = 1024
    tiles: int = 7
    rounds: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """One variant: tokens in its decoder, and seconds of each step."""

    variant: str
    decoder_tokens: int
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """A finished run; the first variant is what the others are compared with."""

    workload: TrainingWorkload
    variants: tuple[TrainingFigures, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per variant."""
        reference = self.variants[0]
        paper = PAPER_SAMPLES_PER_S[reference.variant]
        return [
            {
                "variant": each.variant,
                "decoder_tokens": each.decoder_tokens,
                "samples_per_s": 1 / statistics.median(each.seconds),
                "x": speed_up(reference.seconds, each.seconds),
                "paper_samples_per_s": PAPER_SAMPLES_PER_S[each.variant],
                "paper_x": PAPER_SAMPLES_PER_S[each.variant] / paper,
            }
            for each in self.variants
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"workload": asdict(self.workload), "rows": self.rows()}

    def table(self) -> tuple[str, list[Row]]:
        """A table to be read by people, and a sentence before it."""
        work = self.workload
        sentence = (
            f"Training in PyTorch, FP32, tower frozen, shape `{work.shape}`: {work.text_tokens:,} tokens of "
            f"text and {work.tiles} tiles a sample, one sample a step, median of {work.rounds} rounds; "
            "beside it the paper's Table 3 (34B, 128 H100)."
        )
        table: list[Row] = [
            ("variant", "decoder tokens", "samples/s", "x", "paper samples/s", "paper x"),
        ]
        for row in self.rows():
            table.append(
                (
                    row["variant"],
                    f"{row['decoder_tokens']:,}",
                    f"{row['samples_per_s']:.3f}",
                    f"{row['x']:.2f}",
                    f"{row['paper_samples_per_s']:.1f}",
                    f"{row['paper_x']:.2f}",
                )
            )
        return sentence, table


class TrainingSubject:
    """A model of one variant that takes steps on one sample: AdamW, labels on the last half of the text."""

    def __init__(self, config: NvlmConfig, workload: TrainingWorkload) -> None:
        torch.manual_seed(workload.seed)
        self._model = new_model(config).train()
        self._model.vision.requires_grad_(False)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-5)
        request = training_request(config, workload)
        self.decoder_tokens = len(request.prompt)
        self._ids_BT = torch.from_numpy(request.prompt.input_ids).unsqueeze(0)
        self._mask_BT = torch.zeros_like(self._ids_BT, dtype=torch.bool)
        self._mask_BT[0, torch.from_numpy(request.prompt.visual_positions)] = True
        self._tiles = CrossTiles.of([request.prompt])
        self._pixels = torch.from_numpy(normalize_tiles(request.tiles))
        self._answer = workload.text_tokens // 2

    def step(self) -> float:
        """Seconds of a forward and a backward pass and an update."""
        began = time.perf_counter()
        visual = self._model.encode_tiles(self._pixels)
        hidden_BTD = self._model.hidden_states(self._ids_BT, visual, self._mask_BT, tiles=self._tiles)
        # The row before a token predicts it.
        logits = self._model.language.logits(hidden_BTD[:, -self._answer - 1 : -1])
        loss = F.cross_entropy(logits.flatten(0, 1), self._ids_BT[0, -self._answer :])
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return time.perf_counter() - began


def training_request(config: NvlmConfig, workload: TrainingWorkload) -> BenchRequest:
    """The image's prompt with text behind it, which sees what the prompt's last token sees."""
    request = bench_request(config, workload.tiles, workload.seed)
    prompt = request.prompt
    text = workload.text_tokens - (len(prompt) - len(prompt.visual_positions))
    more = np.random.default_rng(workload.seed).integers(0, config.language.vocab_size, text)
    cross = prompt.cross
    if cross is not None:
        behind_S2 = np.repeat(cross.visible[-1:], text, axis=0)
        cross = replace(cross, visible=np.concatenate([cross.visible, behind_S2]))
    longer = replace(prompt, input_ids=np.concatenate([prompt.input_ids, more]), cross=cross)
    return BenchRequest(longer, request.tiles)


def bench_training(
    configs: Mapping[str, NvlmConfig],
    workload: TrainingWorkload,
    threads: int,
    progress: ProgressCallback,
) -> TrainingReport:
    """Warm up, then measure with so many threads.

    Args:
        configs: of `workload.shape`, by variant; the first is the reference.
    """
    torch.set_num_threads(threads)
    subjects = {variant: TrainingSubject(config, workload) for variant, config in configs.items()}
    for subject in subjects.values():
        subject.step()
    seconds: dict[str, list[float]] = {variant: [] for variant in configs}
    for done in range(workload.rounds):
        for variant, subject in subjects.items():
            seconds[variant].append(subject.step())
        progress("train", done + 1, workload.rounds)
    return TrainingReport(
        workload,
        tuple(
            TrainingFigures(variant, subject.decoder_tokens, seconds[variant])
            for variant, subject in subjects.items()
        ),
    )
