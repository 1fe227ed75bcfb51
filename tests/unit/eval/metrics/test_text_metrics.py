"""VQA, ANLS, relaxed accuracy, exact match and OCRBench against cases that were worked out by hand."""

from __future__ import annotations

import pytest

from nvlm_deploy.eval.metrics import find_metric
from nvlm_deploy.eval.metrics.vqa_text import normalize


def score(name: str, prediction: str, references: list[str], **extra: object) -> float:
    return find_metric(name).score(prediction, references, extra)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The cat.", "cat"),
        ("A dog, an owl", "dog owl"),  # a blank beside the comma: it vanishes
        ("red/blue", "red blue"),  # no blank beside it: it becomes one
        ("red/ blue", "red blue"),
        ("1,000", "1000"),  # a comma between digits: all punctuation vanishes,
        ("1,000 red/blue", "1000 redblue"),  # that of other words, too
        ("3.14", "3.14"),
        ("at 5. p.m.", "at 5 pm"),  # a period stays before digits alone, also after one
        ("two", "2"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),  # the wrong way round, as in the original
        ("ill", "ill"),  # a word of its own, and no I'll
        ("-5", "5"),  # a minus is punctuation
        ("new\nyork\t city", "new york city"),
        ("The", ""),
        ("it's", "it's"),  # an apostrophe is no punctuation
        ("a:b", "a:b"),
    ],
)
def test_normalization_of_vqa(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("matches", "plain", "server"),
    [
        (0, 0.0, 0.0),
        (1, 1 / 3, 0.3),  # one of ten is left out: (1 x 0 + 9 x 1/3) / 10
        (2, 2 / 3, 0.6),  # (2 x 1/3 + 8 x 2/3) / 10
        (3, 1.0, 0.9),  # (3 x 2/3 + 7 x 1) / 10
        (4, 1.0, 1.0),  # (4 x 1 + 6 x 1) / 10
        (10, 1.0, 1.0),
    ],
)
def test_vqa_accuracy_of_ten_answers(matches: int, plain: float, server: float) -> None:
    references = ["The Cat!"] * matches + ["dog"] * (10 - matches)
    assert score("vqa", "cat", references) == pytest.approx(plain)
    assert score("vqa-leave-one-out", "cat", references) == pytest.approx(server)


def test_vqa_with_few_references_cannot_reach_one() -> None:
    assert score("vqa", "cat", ["cat"]) == pytest.approx(1 / 3)
    assert score("vqa", "cat", ["cat", "cat"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("prediction", "references", "wanted"),
    [
        ("hello", ["hello"], 1.0),
        ("Hello  World", ["hello world"], 1.0),  # case and runs of blanks do not count
        ("hallo", ["hello"], 0.8),  # 1 substitution of 5 letters: 1 - 1/5
        ("hell", ["hello"], 0.8),  # 1 deletion: 1 - 1/5
        ("kitten", ["sitting"], 4 / 7),  # 3 edits of 7: 1 - 3/7
        ("ab", ["ad"], 0.0),  # 1 edit of 2 is exactly one half, and scores nothing
        ("abc", ["abd"], 2 / 3),  # 1 edit of 3 is below
        ("hello world and more", ["hello"], 0.0),  # 15 edits of 20
        ("hallo", ["world", "hello"], 0.8),  # the best reference
        ("a.b", ["ab"], 2 / 3),  # punctuation counts
        ("", ["a"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls(prediction: str, references: list[str], wanted: float) -> None:
    assert score("anls", prediction, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("prediction", "reference", "wanted"),
    [
        ("105", "100", 1.0),  # exactly 5 % above
        ("95", "100", 1.0),  # and below
        ("105.01", "100", 0.0),
        ("94.99", "100", 0.0),
        ("1.05", "1", 1.0),  # exact, although 1.05 - 1 > 0.05 in binary
        ("-105", "-100", 1.0),
        ("100", "-100", 0.0),
        ("-5", "5", 0.0),
        ("5%", "5", 1.0),  # a percent sign is dropped on either side
        ("5", "5.2 %", 1.0),  # |5 - 5.2| = 0.2 <= 0.26
        ("0.05", "5%", 0.0),  # and is not read as hundredths
        ("1,234", "1234", 1.0),
        ("1e3", "1000", 1.0),
        ("two", "2", 1.0),
        ("0", "0", 1.0),
        ("0.001", "0", 0.0),  # 5 % of nothing is nothing
        ("2000", "2010", 1.0),  # years have 5 %, too: |10| <= 100.5
        ("Yes.", "yes", 1.0),
        ("the red bars", "red bars", 1.0),
        ("red", "blue", 0.0),
        ("12 apples", "12", 0.0),  # a number in words is no number
        ("nan", "nan", 1.0),
        ("inf", "1e9", 0.0),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, wanted: float) -> None:
    assert score("relaxed", prediction, [reference]) == wanted


def test_relaxed_accuracy_takes_any_reference() -> None:
    assert score("relaxed", "7", ["5", "7.1"]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "wanted"),
    [
        ("The Sun.", "sun", 1.0),
        ("sunny", "sun", 0.0),
        ("A", "A", 1.0),
        ("A.", "A", 1.0),
        ("(a)", "A", 1.0),
        ("", "A", 0.0),  # the letter A is no article here
        ("B", "A", 0.0),
        ("three", "3", 1.0),
    ],
)
def test_exact_match(prediction: str, reference: str, wanted: float) -> None:
    assert score("exact", prediction, [reference]) == wanted


def test_strict_exact_match_changes_nothing_but_the_ends() -> None:
    assert score("exact-strict", " Sun\n", ["Sun"]) == 1.0
    assert score("exact-strict", "sun", ["Sun"]) == 0.0
    assert score("exact-strict", "b", ["a", "b"]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "references", "extra", "wanted"),
    [
        ("The sign says STOP!", ["stop"], {}, 1.0),
        ("stop\nsign", ["Stop Sign"], {}, 1.0),
        ("sto p", ["stop"], {}, 0.0),  # blanks count
        ("stopstop", ["stop", "top"], {}, 1.0),  # two references are found, and one point is given
        ("go", ["stop", "go"], {}, 1.0),
        ("anything", [""], {}, 0.0),
        (r"\frac { a } { b } + c", [r"\frac{a}{b}"], {"dataset_name": "HME100k"}, 1.0),
        (r"\frac { A } { b }", [r"\frac{a}{b}"], {"dataset_name": "HME100k"}, 0.0),  # case counts there
        ("x ^ 2", ["x^2"], {"type": "Handwritten Mathematical Expression Recognition"}, 1.0),
        ("x ^ 2", ["x^2"], {"dataset": "HME100K"}, 1.0),
        ("x ^ 2", ["x^2"], {"dataset_name": "IAM"}, 0.0),
        ("X", ["x"], {"dataset_name": "IAM"}, 1.0),
    ],
)
def test_ocrbench(prediction: str, references: list[str], extra: dict[str, str], wanted: float) -> None:
    assert score("ocrbench", prediction, references, **extra) == wanted


def test_the_rule_of_expressions_by_name() -> None:
    assert score("ocrbench-hme", "a +\nb", ["a+b"]) == 1.0
    assert score("ocrbench", "a +\nb", ["a+b"]) == 0.0
