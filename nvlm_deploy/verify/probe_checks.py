"""An engine held against the probes of its kit.

Shapes: S tokens, T tiles, I pixels per side of a tile, N visual tokens per tile, V visual tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvlm_deploy.backends.protocol import (
    DecoderSession,
    Float32,
    InflightSession,
    TokenRequest,
    VisionSession,
)
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.thresholds import VerifyThresholds
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer, load_image, tile_image
from nvlm_deploy.preprocess.prompt import Prompt
from nvlm_deploy.verify.checks import Check
from nvlm_deploy.verify.compare import log_softmax, mean_cosine
from nvlm_deploy.verify.probes import Probe, ProbeSet, ProbeToken, read_image, read_visual_tokens

# A choice that the reference holds for nearly as likely as its own, in nats, is no disagreement.
_NEAR_TIE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class ProbeInput:
    """A probe as this machine prepares it."""

    probe: Probe
    prompt: Prompt
    tiles: npt.NDArray[np.uint8]
    crc32: tuple[int, ...]

    def faults(self) -> list[str]:
        """What differs from the kit's token ids and tiles, which must be equal to the bit."""
        ids = tuple(int(i) for i in self.prompt.input_ids)
        found = []
        if ids != self.probe.input_ids[: self.probe.prompt_length]:
            found.append(f"{self.probe.label}: token ids")
        if self.crc32 != self.probe.tile_crc32:
            found.append(f"{self.probe.label}: tiles")
        return found


@dataclass(frozen=True, slots=True)
class Chosen:
    """What an engine says at one position: its token, and the token's log-probability if it tells."""

    token: int
    log_prob: float | None


# Input, visual tokens [V, D] and positions to what the engine chooses there.
Chooser = Callable[[ProbeInput, Float32 | None, Sequence[int]], list[Chosen]]


def prepare_probe(directory: Path, probe: Probe, tokenizer: Tokenizer, config: NvlmConfig) -> ProbeInput:
    """Tile and tokenize a probe with the runtime's own code."""
    image = read_image(directory, probe)
    builder = PromptBuilder(tokenizer, config)
    if image is None:
        side = config.tile_size
        return ProbeInput(probe, builder.build(probe.question), np.empty((0, side, side, 3), np.uint8), ())
    tiled = tile_image(load_image(image), config)
    return ProbeInput(probe, builder.build(probe.question, [len(tiled)]), tiled.tiles, tiled.crc32)


def check_probes(
    directory: Path,
    probes: ProbeSet,
    prepared: Sequence[ProbeInput],
    vision: VisionSession,
    choose: Chooser,
    limits: VerifyThresholds,
    vision_cosine: float,
) -> list[Check]:
    """Ask an engine all probes.

    Args:
        vision_cosine: what visual tokens must reach; quantized towers are held to their recipe's limit.
    """
    faults = [fault for each in prepared for fault in each.faults()]
    checks = [
        Check(
            "token ids and tiles, probes that differ",
            "contract",
            len(faults),
            0,
            False,
            place=", ".join(faults[:3]),
            note=f"{len(prepared)} probes",
        )
    ]
    if faults:
        return checks
    cosines, agreed, gaps = [], [], []
    for each in prepared:
        tokens_VD = _encode(vision, each)
        cosines += _cosines(directory, each, tokens_VD)
        wanted = each.probe.tokens
        chosen = choose(each, tokens_VD, [token.position for token in wanted])
        for token, found in zip(wanted, chosen, strict=True):
            agreed.append(_agrees(token, found))
            expected = token.log_prob(found.token)
            if found.log_prob is not None and expected is not None:
                gaps.append(abs(found.log_prob - expected))
    least = min(vision_cosine, limits.projector_cosine)
    checks.append(_vision_check(cosines, least))
    share = float(np.mean(agreed)) if agreed else None
    note = f"{len(agreed)} positions of {len(probes.probes)} probes, against {probes.reference}"
    checks.append(Check("next tokens, agreement", "answers", share, limits.text_top1, True, note=note))
    gap = float(np.mean(gaps)) if gaps else None
    checks.append(
        Check(
            "log-probability of the chosen token, mean difference",
            "logits",
            gap,
            _largest_gap(limits),
            False,
            note="" if gaps else "the engine reports none",
        )
    )
    return checks


def inflight_chooser(session: InflightSession, end_id: int) -> Chooser:
    """Ask for one token at every position: requests with the answer up to there, all in flight together."""

    def choose(given: ProbeInput, tokens_VD: Float32 | None, positions: Sequence[int]) -> list[Chosen]:
        ids = np.array(given.probe.input_ids, np.int64)
        images = (given.tiles,) if len(given.tiles) else ()
        numbers = [
            session.submit(
                TokenRequest(
                    input_ids=ids[: position + 1],
                    visual_positions=given.prompt.visual_positions,
                    tiles=images,
                    visual_tokens=tokens_VD,
                    max_new_tokens=1,
                    end_id=end_id,
                    log_probs=True,
                )
            )
            for position in positions
        ]
        return [_only_token(session, number, end_id) for number in numbers]

    return choose


def stepwise_chooser(decoder: DecoderSession) -> Chooser:
    """Compute the logits of all positions in one run of a decoder session."""

    def choose(given: ProbeInput, tokens_VD: Float32 | None, positions: Sequence[int]) -> list[Chosen]:
        ids_S = np.array(given.probe.input_ids, np.int64)
        places_V = given.prompt.visual_positions
        index_V2 = None if tokens_VD is None else np.column_stack([np.zeros_like(places_V), places_V])
        cache = decoder.new_cache(1, len(ids_S))
        logits_1PV = decoder.run(
            ids_S[None],
            np.array([len(ids_S)], np.int32),
            cache,
            tokens_VD,
            index_V2,
            np.array([positions], np.int64),
        )
        log_p_PV = log_softmax(logits_1PV[0])
        best_P = log_p_PV.argmax(axis=1)
        return [Chosen(int(i), float(row[i])) for i, row in zip(best_P, log_p_PV, strict=True)]

    return choose


def _only_token(session: InflightSession, number: int, end_id: int) -> Chosen:
    tokens: list[int] = []
    log_probs: list[float] = []
    final = False
    while not final:
        update = session.next_update(number)
        tokens += update.tokens
        log_probs += update.log_probs
        final = update.final
    # The end of the turn may end a request without being reported as a token.
    return Chosen(tokens[0] if tokens else end_id, log_probs[0] if log_probs else None)


def _encode(vision: VisionSession, given: ProbeInput) -> Float32 | None:
    if not len(given.tiles):
        return None
    encoded = vision.encode(given.tiles)
    return encoded.reshape(-1, encoded.shape[-1])


def _cosines(directory: Path, given: ProbeInput, tokens_VD: Float32 | None) -> list[float]:
    expected_TND = read_visual_tokens(directory, given.probe)
    if expected_TND is None or tokens_VD is None:
        return []
    found_TND = tokens_VD.reshape(len(given.tiles), -1, tokens_VD.shape[1])
    return [
        mean_cosine(expected_ND, found_TND[tile])
        for tile, expected_ND in zip(given.probe.visual_tiles, expected_TND, strict=True)
    ]


def _vision_check(cosines: Sequence[float], least: float) -> Check:
    worst = min(cosines) if cosines else None
    return Check(
        "visual tokens, cosine of the worst tile", "layers", worst, least, True, note=f"{len(cosines)} tiles"
    )


def _agrees(token: ProbeToken, found: Chosen) -> bool:
    log_prob = token.log_prob(found.token)
    return log_prob is not None and log_prob >= token.top[0].log_prob - _NEAR_TIE


def _largest_gap(limits: VerifyThresholds) -> float:
    """Mean difference in nats: the divergence grows with its square, about half of it for small ones."""
    return 2 * float(np.sqrt(2 * max(limits.image_kl, limits.text_kl)))
