"""The answer normalization of the VQA evaluation: punctuation, number words, articles, contractions.

Rules: `VQAEval.processPunctuation` and `processDigitArticle` of GT-Vision-Lab/VQA
(PythonEvaluationTools/vqaEvaluation/vqaEval.py), in the form of open_flamingo/eval/vqa_metric.py that
NVIDIA's evaluation of NVLM imports.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_COUNT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNT)} | {"none": "0"}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The original means to spare periods after a digit, too, but misspells its look-behind, which is then always
# true.
_PERIOD = re.compile(r"\.(?!\d)")

# Words that are written with an apostrophe; those that are words without one, like we're or she'll, are left
# out.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# One apostrophe of a word may be missing, and of two of them one. The last entry is the other way round, as
# in the original; its entries with a capital I match nothing, because the text is in lower case, and are left
# out.
_SPELLINGS = {short: word for word in _CONTRACTIONS.split() for short in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}


def normalize(text: str) -> str:
    """Return an answer as the VQA evaluation compares it.

    Quirks of the original that are kept: a number with a comma in it, anywhere in the text, makes all
    punctuation vanish, which otherwise becomes blanks unless a blank is beside it; a minus is punctuation;
    `none` is 0; a lone `A` becomes nothing.
    """
    spaced = " ".join(re.split(r"[\n\t]", text)).strip()
    words = [_NUMBER_WORDS.get(word, word) for word in _strip_punctuation(spaced).lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def _strip_punctuation(text: str) -> str:
    vanish_all = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        vanish = vanish_all or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if vanish else " ")
    return _PERIOD.sub("", stripped)
