"""MMLU: the letter that an answer in words names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nvlm_deploy.eval.metrics.choices import find_choice, lettered, options_of, right_letters
from nvlm_deploy.eval.metrics.metric import Extra, Field

FIELDS = (Field("options", "options", "the options; A to D if they are not given"),)

_DEFAULT = lettered(("A", "B", "C", "D"))


def mmlu(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the letter after the last "answer is", else the one at the start, else as in MMMU, is right.

    Source: the generative MMLU tasks of EleutherAI/lm-evaluation-harness (lm_eval/tasks/mmlu). An answer that
    names no letter is wrong.
    """
    options = options_of(extra, "options") or _DEFAULT
    right = right_letters(references, options)
    letters = "|".join(map(re.escape, options))
    stated = re.findall(rf"(?i:answer(?:\s+is)?):?\s*\**\(?({letters})(?!\w)", prediction)
    if stated:
        return float(stated[-1] in right)
    first = re.match(rf"\s*\**\(?({letters})(?:[).:,*]|\s*$)", prediction)
    return float((first[1] if first else find_choice(prediction, options)) in right)
