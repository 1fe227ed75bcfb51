"""Agreement of logits and hidden states, against PyTorch and against what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.agreement import Agreement, agreement, cosine


def test_kl_is_torchs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 11)) * 3
    log_p, log_q = (F.log_softmax(torch.from_numpy(x), dim=1) for x in (a, b))
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    found = agreement(a, b)
    assert found.kl == pytest.approx(float(expected), rel=1e-12)
    assert found.same_top1 == int((log_p.argmax(1) == log_q.argmax(1)).sum())


def test_a_constant_changes_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 7))
    found = agreement(logits, logits + 100)
    assert found.kl == pytest.approx(0, abs=1e-12)
    assert found.top1 == 1


def test_prompts_add_up() -> None:
    assert Agreement(2, 1.0, 1) + Agreement(3, 2.0, 3) == Agreement(5, 3.0, 4)


def test_an_overflow_is_no_agreement() -> None:
    logits = np.eye(3)
    broken = logits.copy()
    broken[1, 1] = np.inf
    found = agreement(logits, broken)
    assert found.kl == np.inf
    assert found.same_top1 == 2
    with pytest.raises(NvlmError, match="not finite"):
        agreement(broken, logits)
    with pytest.raises(NvlmError, match="cannot be compared"):
        agreement(logits, logits[:2])


def test_cosines() -> None:
    a = np.array([[3.0, 4.0]])
    assert cosine(a, 2 * a) == pytest.approx(1)
    assert cosine(a, np.array([[-4.0, 3.0]])) == pytest.approx(0)
    assert cosine(a, np.array([[np.nan, 1.0]])) == -1
    assert cosine(0 * a, 0 * a) == 1
    assert cosine(0 * a, a) == 0
