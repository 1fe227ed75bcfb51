"""How close two sets of outputs are: KL divergence and top-1 agreement of logits, cosine of hidden states.

Shapes: S positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.errors import NvlmError

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over positions, so that agreements of several prompts can be added.

    kl_sum: KL(reference || candidate) in nats. same_top1: positions whose most likely token is the same.
    """

    positions: int = 0
    kl_sum: float = 0.0
    same_top1: int = 0

    @property
    def kl(self) -> float:
        """Mean KL divergence of a position, nats."""
        return self.kl_sum / self.positions

    @property
    def top1(self) -> float:
        """Share of positions with the same most likely token, 0 to 1."""
        return self.same_top1 / self.positions

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.positions + other.positions,
            self.kl_sum + other.kl_sum,
            self.same_top1 + other.same_top1,
        )


def agreement(reference_SV: Array, candidate_SV: Array) -> Agreement:
    """Compare logits position by position, in float64.

    Raises:
        NvlmError: the shapes differ, or the reference holds numbers that are not finite. A candidate
            that does has an infinite divergence there and no agreement.
    """
    if reference_SV.shape != candidate_SV.shape or reference_SV.ndim != 2:
        raise NvlmError(
            f"logits {list(reference_SV.shape)} and {list(candidate_SV.shape)} cannot be compared"
        )
    if not np.isfinite(reference_SV).all():
        raise NvlmError("the reference's logits are not finite")
    finite_S = np.isfinite(candidate_SV).all(axis=1)
    log_p_SV = _log_softmax(reference_SV[finite_S])
    log_q_SV = _log_softmax(candidate_SV[finite_S])
    kl_S = (np.exp(log_p_SV) * (log_p_SV - log_q_SV)).sum(axis=1)
    same_S = log_p_SV.argmax(axis=1) == log_q_SV.argmax(axis=1)
    # Rounding may leave a divergence of equal rows a little below zero.
    total = float(np.maximum(kl_S, 0).sum()) if finite_S.all() else float("inf")
    return Agreement(len(reference_SV), total, int(same_S.sum()))


def cosine(reference: Array, candidate: Array) -> float:
    """Cosine between two arrays as flat vectors, in float64; 1 for two zero vectors, -1 if not finite.

    Raises:
        NvlmError: the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise NvlmError(f"arrays {list(reference.shape)} and {list(candidate.shape)} cannot be compared")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return -1.0
    a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(a @ b) / norms


def _log_softmax(logits_SV: Array) -> npt.NDArray[np.float64]:
    shifted_SV = logits_SV.astype(np.float64) - logits_SV.max(axis=1, keepdims=True)
    log_p_SV: npt.NDArray[np.float64] = shifted_SV - np.log(np.exp(shifted_SV).sum(axis=1, keepdims=True))
    return log_p_SV
