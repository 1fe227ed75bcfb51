"""ANLS, of DocVQA and InfographicVQA: one minus the edit distance, if not more than half has to be edited."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.eval.metrics.metric import Extra

_THRESHOLD = 0.5


def anls(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """The best over the references of 1 - NL if NL < 0.5, else 0; NL is the distance over the longer length.

    Texts are compared in lower case with blank space collapsed. Source: Biten et al. 2019, equation 1, and
    `anls_score` of Megatron-LM examples/multimodal/evaluation/evaluate_vqav2.py. An NL of exactly 0.5 scores
    0, as in both; lmms-eval lets it score 0.5. NVIDIA's code also strips punctuation first; DocVQA's does
    not, nor this.
    """
    answer = _collapse(prediction)
    return max(_similarity(answer, _collapse(reference)) for reference in references)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of characters cost 1 each."""
    row = list(range(len(b) + 1))
    for i, char_a in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, char_b in enumerate(b, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, corner + (char_a != char_b))
            corner, row[j] = row[j], cost
    return row[-1]


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    if longer == 0:
        return 1.0
    # The distance is at least the difference in length, so long answers to short ones need no computing.
    if abs(len(a) - len(b)) >= _THRESHOLD * longer:
        return 0.0
    distance = edit_distance(a, b) / longer
    return 1.0 - distance if distance < _THRESHOLD else 0.0


def _collapse(text: str) -> str:
    return " ".join(text.lower().split())
