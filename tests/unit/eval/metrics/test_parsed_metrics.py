"""MMMU, MathVista, GSM8K and MMLU: what is taken out of an answer in words."""

from __future__ import annotations

import pytest

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.metrics import find_metric
from nvlm_deploy.eval.metrics.choices import find_choice

ANIMALS = ["red cat", "dog", "blue owl", "fox"]
LETTERS = dict(zip("ABCD", ANIMALS, strict=True))


def score(name: str, prediction: str, references: list[str], **extra: object) -> float:
    return find_metric(name).score(prediction, references, extra)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("C) because it is blue", "C"),
        ("Not (A), but (D)", "D"),  # the last one
        ("(A) rather than B", "A"),  # brackets come first
        ("I think B or C I guess", "C"),
        ("the animal in the picture is a dog", "B"),  # more than five words: their content
        ("it is a dog", None),  # five words or fewer: no content
        ("first the dog and then the red cat", "A"),  # the last content
        ("the DNA) of an animal, whichever it may be", None),  # no letter of its own
        ("b", None),  # letters in capitals alone
        ("", None),
    ],
)
def test_which_option_an_answer_names(answer: str, letter: str | None) -> None:
    assert find_choice(answer, LETTERS) == letter


def test_mmmu_with_options() -> None:
    assert score("mmmu", "The answer is (B).", ["B"], options=ANIMALS) == 1.0
    assert score("mmmu", "B", ["B"], options=LETTERS) == 1.0
    assert score("mmmu", "B", ["A"], options=ANIMALS) == 0.0
    # NVIDIA's rule: what names no option counts as the first; nothing at all is wrong.
    assert score("mmmu", "no idea", ["A"], options=ANIMALS) == 1.0
    assert score("mmmu", " ", ["A"], options=ANIMALS) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "wanted"),
    [
        ("42", "42", 1.0),
        ("The answer is 42.", "42", 1.0),
        ("x = 3.14159", "3.14", 1.0),  # to two places
        ("so the total is $1,250", "1250", 1.0),
        ("2.5e2 meters", "250", 1.0),
        ("it is 41", "42", 0.0),
        ("It is 42\nTherefore 43", "42", 1.0),  # each line has a conclusion, and any may be right
        ("7 apples, is 8", "7", 0.0),  # what stands before "is" is no conclusion
        ("therefore it is photosynthesis", "Photosynthesis", 1.0),
        ("respiration", "photosynthesis", 0.0),
        ("x", "x", 1.0),
        ("what it is worth", "it is worth", 0.0),  # an indicator in the answer itself, as in the original
        ("xylophone", "x", 0.0),  # one letter needs a blank beside it
        ("point x here", "x", 1.0),
    ],
)
def test_mmmu_with_an_open_answer(answer: str, reference: str, wanted: float) -> None:
    assert score("mmmu", answer, [reference]) == wanted


@pytest.mark.parametrize(
    ("answer", "reference", "extra", "wanted"),
    [
        ("(B)", "dog", {"choices": ANIMALS}, 1.0),  # references are texts of choices
        ("B", "B", {"choices": ANIMALS}, 1.0),  # or letters
        ("dog", "dog", {"choices": ANIMALS}, 1.0),
        ("blue owls", "blue owl", {"choices": ANIMALS}, 1.0),  # 1 edit away, the others more
        ("", "dog", {"choices": ANIMALS}, 0.0),
        ("12.7", "12", {"answer_type": "integer"}, 1.0),  # int() cuts
        ("The answer is 12", "12", {"answer_type": "integer"}, 1.0),
        ("7 + 5 = 12 apples", "12", {"answer_type": "integer"}, 1.0),  # the last number
        ("The answer is 12. It was 13 before", "12", {"answer_type": "integer"}, 1.0),
        ("The answer is not 5, the answer is 6", "6", {"answer_type": "integer"}, 1.0),
        ("-12", "12", {"answer_type": "integer"}, 0.0),
        ("16-12", "12", {"answer_type": "integer"}, 1.0),  # no minus behind a digit
        ("none", "0", {"answer_type": "integer"}, 0.0),
        ("1.26", "1.3", {"answer_type": "float", "precision": 1}, 1.0),  # rounds to 1.3
        ("1.24", "1.3", {"answer_type": "float", "precision": 1}, 0.0),
        ("5.10", "5.1", {"answer_type": "float", "precision": 2}, 1.0),
        ("3.149", "3.14", {}, 1.0),  # without a type: cut to two places
        ("3.15", "3.14", {}, 0.0),
        ("5.00", "5", {}, 1.0),
        ("25%", "25", {}, 1.0),
        ("[1, 2.0, 3]", "[1, 2, 3]", {"answer_type": "list"}, 1.0),
        ("[100,200]", "[100, 200]", {"answer_type": "list"}, 1.0),  # no comma between thousands
        ("It is [3, 2]", "[2, 3]", {"answer_type": "list"}, 0.0),
        ("nothing", "[1]", {"answer_type": "list"}, 0.0),
        ('The answer is "Yes".', "yes", {"answer_type": "text"}, 1.0),
        ("The answer is yes.", "yes", {"answer_type": "text"}, 1.0),
        ("1e400 and more", "1", {}, 0.0),
        ("9" * 60, "9" * 60, {}, 1.0),
    ],
)
def test_mathvista(answer: str, reference: str, extra: dict[str, object], wanted: float) -> None:
    assert score("mathvista", answer, [reference], **extra) == wanted


@pytest.mark.parametrize(
    ("answer", "reference", "loose", "strict"),
    [
        ("5 + 13 = 18\n#### 18", "#### 18", 1.0, 1.0),
        ("The answer is $1,250.", "1250", 1.0, 1.0),
        ("the answer is: **18**", "18", 1.0, 1.0),
        (r"so \boxed{18}", "18", 1.0, 1.0),
        ("She has 18 apples left.", "18", 1.0, 0.0),  # no mark
        ("18 of 20", "18", 0.0, 0.0),  # the last number counts
        ("#### 18, although 20 was given", "18", 1.0, 1.0),
        ("#### 0", "0", 1.0, 1.0),
        ("0", "0", 1.0, 0.0),
        ("#### 18.0", "18", 1.0, 1.0),
        ("#### -3", "-3", 1.0, 1.0),
        ("nothing", "18", 0.0, 0.0),
    ],
)
def test_gsm8k(answer: str, reference: str, loose: float, strict: float) -> None:
    assert score("gsm8k", answer, [reference]) == loose
    assert score("gsm8k-strict", answer, [reference]) == strict


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("C.", "C"),
        ("(C) blue owl", "C"),
        ("C: because A is wrong", "C"),
        ("The answer is C", "C"),
        ("A and B are wrong, so the answer is (C).", "C"),
        ("Answer: **C**", "C"),
        ("I would say option C here", "C"),
    ],
)
def test_mmlu(answer: str, letter: str) -> None:
    assert score("mmlu", answer, [letter]) == 1.0
    assert score("mmlu", answer, ["A"]) == 0.0
    assert score("mmlu", answer, [letter], options=ANIMALS) == 1.0


def test_no_letter_is_no_right_letter() -> None:
    assert score("mmlu", "no idea", ["A"]) == 0.0


@pytest.mark.parametrize(
    ("metric", "references", "extra", "text"),
    [
        ("mmmu", ["E"], {"options": ANIMALS}, "references.0 is 'E'"),
        ("mmlu", ["E"], {}, "references.0 is 'E'"),
        ("mmmu", ["A"], {"options": ["one"]}, "options must be a list of 2 to 26 texts"),
        ("mmmu", ["A"], {"options": "A"}, "options must be"),
        ("mathvista", ["1"], {"answer_type": "number"}, "answer_type is 'number'"),
        ("mathvista", ["1"], {"precision": 1.5}, "precision must be an integer"),
        ("mathvista", ["x"], {"answer_type": "list"}, "is no list of numbers"),
        ("gsm8k", ["18", "many"], {}, "references.1 is 'many'"),
        ("ocrbench", ["x"], {"type": 3}, "type must be a text"),
        ("vqa-leave-one-out", ["x"], {}, "needs at least 2"),
    ],
)
def test_lines_that_a_metric_cannot_use(
    metric: str, references: list[str], extra: dict[str, object], text: str
) -> None:
    with pytest.raises(NvlmError, match=text):
        find_metric(metric).check(references, extra)
