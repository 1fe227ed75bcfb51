"""What holds for every metric and any text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.eval.metrics import METRICS, find_metric
from nvlm_deploy.eval.metrics.anls import edit_distance
from nvlm_deploy.eval.metrics.vqa_text import normalize

TEXTS = st.text(st.sampled_from("aAtTheb .,;:'\"/-+%$0159()[]=\n#é五"), max_size=24) | st.text(max_size=12)
# Words that stay as they are, so that a text equals itself under every rule.
WORDS = (
    st.lists(st.text("bcdefgmorstuwxyz", min_size=3, max_size=8), min_size=1, max_size=3)
    .map(" ".join)
    .filter(lambda text: normalize(text) == text)
)
FREE = ("vqa", "vqa-leave-one-out", "anls", "relaxed", "exact", "exact-strict", "ocrbench", "ocrbench-hme")


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=5))
def test_scores_are_between_zero_and_one(prediction: str, references: list[str]) -> None:
    for name in (*FREE, "mmmu", "mathvista"):
        assert 0.0 <= find_metric(name).score(prediction, references, {}) <= 1.0
    for name in ("gsm8k", "gsm8k-strict"):
        assert find_metric(name).score(prediction, ["18"], {}) in (0.0, 1.0)
    for letter in "AB":
        assert find_metric("mmlu").score(prediction, [letter], {}) in (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(WORDS)
def test_a_reference_scores_one_against_itself(text: str) -> None:
    for name in FREE:
        assert METRICS[name].score(text, [text] * 10, {}) == 1.0


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=5))
def test_the_order_of_references_does_not_matter(prediction: str, references: list[str]) -> None:
    shuffled = references[::-1]
    for name in (*FREE, "mmmu", "mathvista"):
        metric = find_metric(name)
        assert metric.score(prediction, references, {}) == metric.score(prediction, shuffled, {})


@settings(max_examples=30, deadline=None)
@given(WORDS, WORDS)
def test_case_articles_and_blanks_do_not_count_where_answers_are_normalized(text: str, other: str) -> None:
    for name in ("vqa", "exact", "relaxed"):
        metric = find_metric(name)
        plain = metric.score(text, [other] * 3, {})
        assert metric.score(f" The {text.upper()}. ", [other] * 3, {}) == plain


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_normalizing_words_twice_is_normalizing_once(text: str) -> None:
    once = normalize("".join(c for c in text if c.isalpha() or c == " "))
    assert normalize(once) == once


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_the_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
