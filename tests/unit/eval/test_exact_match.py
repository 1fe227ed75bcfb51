"""Counting right answers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from nvlm_deploy.eval.answerers import open_answerer
from nvlm_deploy.eval.exact_match import exact_match
from nvlm_deploy.synthetic.documents import Sample, samples


def test_counts_by_kind_and_lists_misses() -> None:
    pages = list(samples("heldout", 12))
    wrong = pages[5]

    def answer(sample: Sample) -> str:
        return "nonsense" if sample is wrong else f" {sample.answer}\n"

    seen: list[int] = []
    report = exact_match(pages, answer, seen.append)
    assert report.share == 11 / 12
    assert sum(report.asked.values()) == 12
    assert report.asked[wrong.kind] - report.right[wrong.kind] == 1
    (miss,) = report.misses
    assert (miss.question, miss.expected, miss.given) == (wrong.question, wrong.answer, "nonsense")
    assert report.to_dict()["by_kind"].keys() == report.asked.keys()
    assert seen == list(range(1, 13))


def test_a_checkpoint_answers_in_pytorch(tiny_checkpoint: Path) -> None:
    answer = open_answerer(tiny_checkpoint)
    (page,) = islice(samples("heldout", 1, tile_size=56), 1)
    assert answer(page) == answer(page)
