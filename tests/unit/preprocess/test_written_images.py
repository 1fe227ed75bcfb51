"""Images that plain prompts write out: taken where tags are those of their tiles, refused everywhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvlm_deploy.config.model import NvlmConfig, Variant
from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess import PromptBuilder
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

from .conftest import SMALL, TOKENIZER_FILE

THUMBNAIL = "<tile_global_thumbnail>"
TAGS = f"<tile_1><tile_2>{THUMBNAIL}"


def builder(variant: Variant) -> PromptBuilder:
    if variant == "D":
        return PromptBuilder(SMALL, NvlmConfig.from_directory(TOKENIZER_FILE.parent))
    shape = replace(TINY_SHAPE, vocab_size=SMALL.size)
    return PromptBuilder(SMALL, NvlmConfig.from_dict(cross_style_config(shape, variant, [0])))


@pytest.mark.parametrize(("variant", "tags"), [("X", TAGS), ("H", THUMBNAIL)])
def test_an_image_with_its_tags_is_that_image(variant: Variant, tags: str) -> None:
    build = builder(variant).build
    written = build(f"A <Image>{tags}</Image> B <image> C", [3, 1])
    marked = build("A <image> B <image> C", [3, 1])
    assert written.text == marked.text
    assert written.input_ids.tolist() == marked.input_ids.tolist()
    assert written.cross is not None
    assert marked.cross is not None
    assert written.cross.visible.tolist() == marked.cross.visible.tolist()


def test_the_text_of_a_prompt_is_a_prompt() -> None:
    question = builder("X").build("What is this?", [3]).text.split("user\n")[1].split("<|im_end|>")[0]
    assert f"<Image>{TAGS}</Image>\n" in question
    assert builder("X").build(question, [3]).text == builder("X").build("What is this?", [3]).text


@pytest.mark.parametrize(
    ("variant", "prompt", "tiles", "message"),
    [
        (
            "X",
            f"<Image><tile_2><tile_1>{THUMBNAIL}</Image>",
            [3],
            "the tags of image 1 are out of order: <tile_2> stands where <tile_1> belongs",
        ),
        (
            "X",
            f"<image><Image>{TAGS}</Image>",
            [3, 1],
            f"image 2 is written with <tile_1>, <tile_2>, {THUMBNAIL}, and its tiles' tags are {THUMBNAIL}",
        ),
        ("X", f"<Image><tile_1>{THUMBNAIL}</Image>", [3], "image 1 is written with <tile_1>"),
        ("X", "<Image></Image>\nWhat?", [3], "image 1 is written without tags"),
        ("X", f"<Image>{TAGS}</Image>", [], "the prompt has 1 <image>, but the number of images passed is 0"),
        (
            "X",
            "What does <tile_3> show?",
            [3],
            "the prompt names <tile_3>, and no image that is passed has it",
        ),
        ("X", "<tile_1>", [], "the prompt names <tile_1>"),
        ("H", f"<Image>{TAGS}</Image>", [3], f"and its tiles' tags are {THUMBNAIL}"),
        ("H", "What does <tile_1> show?", [3], "the prompt names <tile_1>"),
    ],
)
def test_other_tags_are_refused(variant: Variant, prompt: str, tiles: list[int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        builder(variant).build(prompt, tiles)
    assert message in caught.value.message
    assert "<image>" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["<Image> is a tag", "<tile_floor>", "<Image>A</Image>"])
def test_what_is_no_tag_is_text(text: str) -> None:
    assert text in builder("X").build(text, [1]).text


def test_messages_and_nvlm_d_take_tags_as_text() -> None:
    text = "<Image><tile_9></Image>"
    assert text in builder("X").build([{"role": "user", "content": text}]).text
    assert text in builder("D").build(text, [1]).text
