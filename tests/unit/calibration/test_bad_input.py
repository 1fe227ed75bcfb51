"""What is wrong with a set is said before any work, with file and line or file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvlm_deploy.errors import NvlmError

from .conftest import Load

JSONL = {"kind": "jsonl", "path": "data.jsonl"}
FOLDER = {"kind": "folder", "path": "pictures", "prompt": "What?"}


def refuse(load: Load, source: dict[str, Any], message: str) -> NvlmError:
    with pytest.raises(NvlmError, match=message) as caught:
        load(source)
    return caught.value


@pytest.mark.parametrize("source", [FOLDER, JSONL])
def test_a_missing_path(load: Load, tmp_path: Path, source: dict[str, Any]) -> None:
    error = refuse(load, source, f"'mine': source.path is '{source['path']}': {tmp_path}.* does not exist")
    assert error.hint == "a relative path starts at the folder of the YAML file that names it"


def test_a_file_for_a_folder_and_a_folder_for_a_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("")
    refuse(load, FOLDER, "pictures is no folder")
    (tmp_path / "data.jsonl").mkdir()
    refuse(load, JSONL, r"data\.jsonl is a folder, not a file")


def test_a_folder_without_images(load: Load, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    error = refuse(load, FOLDER, f"the folder {tmp_path}/pictures has no images")
    assert (error.hint or "").startswith("files that count end in .bmp, .gif")


def test_an_empty_image(load: Load, pictures: Path) -> None:
    (pictures / "0.png").write_bytes(b"")
    with pytest.raises(NvlmError) as caught:
        load(FOLDER, count=10)
    # Once, although the conversation is called like its image.
    assert caught.value.message == f"{pictures}/0.png is empty"


def test_a_truncated_image(load: Load, pictures: Path) -> None:
    path = pictures / "below" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(NvlmError, match=rf"^{path} is corrupt or truncated"):
        load(FOLDER, count=10)


def write(folder: Path, *lines: Any) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "data.jsonl").write_text("\n".join(texts) + "\n")


GOOD = {"question": "What?", "answer": "fog"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": ', "is not valid JSON: Expecting value"),
        ("[1, 2]", "is a list, not a JSON object"),
        ({**GOOD, "imge": "a.png"}, r": the key 'imge' is not known"),
        ({"answer": "fog"}, ": needed: either 'messages' or 'question'"),
        ({**GOOD, "messages": []}, ": needed: either 'messages' or 'question'"),
        ({**GOOD, "image": "a.png", "images": ["b.png"]}, ": both 'image' and 'images' are given"),
        ({**GOOD, "image": 3}, ": image is 3: input should be a valid string"),
        ({"messages": [], "answer": "fog"}, ": 'answer' belongs to 'question'"),
        ({"messages": []}, ": the conversation has no message of the user"),
        (
            {"messages": [{"role": "assistant", "content": "fog"}]},
            ": the conversation has no message of the user",
        ),
        (
            {"messages": [{"role": "system", "content": "fog"}]},
            ": the conversation has no message of the user",
        ),
        ({"messages": [{"role": "usr", "content": "fog"}]}, r": messages\[0\].role is 'usr'"),
        ({"messages": [{"role": "user"}]}, r": messages\[0\] has no 'content'"),
        ({"messages": [{"role": "user", "content": 3}]}, r": messages\[0\].content is a int"),
        ({"messages": ["fog"]}, r": messages.0 is 'fog'"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "assistant")]},
            r": messages\[1\] and messages\[2\] are both the assistant's",
        ),
        (
            {"question": "<image> and <image>?", "image": "a.png"},
            ": the messages have 2 image parts without a source; images passed: 1",
        ),
        (
            {"question": "What is <image>?"},
            ": the messages have 1 image parts without a source; images passed: 0",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]},
            ": an image is 3, not the path of a file",
        ),
        ({**GOOD, "image": "nowhere.png"}, ": the image .*nowhere.png does not exist"),
    ],
)
def test_a_malformed_line_is_named(load: Load, tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path, GOOD, "", line)
    with pytest.raises(NvlmError, match=rf"{tmp_path}/data\.jsonl:3:? ?{message.removeprefix(': ')}"):
        load(JSONL)


def test_a_misspelt_key_of_a_line_brings_the_nearest(load: Load, tmp_path: Path) -> None:
    write(tmp_path, {**GOOD, "imge": "a.png"})
    assert refuse(load, JSONL, r"data\.jsonl:1: the key 'imge'").hint == "did you mean 'image' or 'images'?"


def test_an_empty_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n \n")
    error = refuse(load, JSONL, r"data\.jsonl has no lines")
    assert (error.hint or "").startswith('a line is {"image": FILE, "question": TEXT')


def test_a_line_that_is_not_drawn_is_checked_too(load: Load, tmp_path: Path) -> None:
    write(tmp_path, *[GOOD] * 50, "{")
    with pytest.raises(NvlmError, match=r"data\.jsonl:51 is not valid JSON"):
        load(JSONL, count=1)


def test_a_broken_image_names_line_and_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image at all")
    write(tmp_path, GOOD, {**GOOD, "image": "a.png"})
    refuse(load, JSONL, rf"^{tmp_path}/data\.jsonl:2: {tmp_path}/a\.png is not an image")


def test_an_image_without_pixels_is_refused(load: Load, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    png = bytearray((tmp_path / "a.png").read_bytes())
    png[16:20] = bytes(4)  # the width in the header
    (tmp_path / "a.png").write_bytes(png)
    write(tmp_path, {**GOOD, "image": "a.png"})
    refuse(load, JSONL, rf"^{tmp_path}/data\.jsonl:1: {tmp_path}/a\.png ")
