"""Rows of a data set, by a stand-in for the package that reads them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from nvlm_deploy.errors import NvlmError

from .conftest import Load

SOURCE = {
    "kind": "huggingface",
    "dataset": "someone/charts",
    "split": "train",
    "revision": "0123abc",
    "image_column": "image",
    "question_column": "query",
    "answer_column": "label",
}


class Rows:
    """What the reader uses of `datasets.Dataset`."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    @property
    def column_names(self) -> list[str]:
        return list(self._rows[0]) if self._rows else ["image", "query", "label"]

    def select_columns(self, names: list[str]) -> Rows:
        return Rows([{name: row[name] for name in names} for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def row(image: Any, label: Any = "7", query: Any = "What?") -> dict[str, Any]:
    return {"id": object(), "image": image, "query": query, "label": label}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `load_dataset` return these rows; return what it was asked for."""

    def serve_rows(rows: list[dict[str, Any]]) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(*arguments: Any, **names: Any) -> Rows:
            asked.append((arguments, names))
            return Rows(rows)

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return asked

    return serve_rows


PICTURE = Image.new("RGB", (224, 112), (200, 0, 0))


def encoded() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


def test_rows_become_samples(load: Load, serve: Any) -> None:
    cells = [PICTURE, {"bytes": encoded(), "path": None}, [PICTURE, PICTURE], None]
    asked = serve([row(cell) for cell in cells])
    samples = load(SOURCE)
    assert asked == [(("someone/charts", None), {"split": "train", "revision": "0123abc"})]
    assert [sample.tiles_per_image for sample in samples] == [(3,), (3,), (3, 3), ()]
    assert samples[0].digest() == samples[1].digest()
    assert samples[0].label == "someone/charts[0]"


def test_of_several_answers_the_first_counts(load: Load, serve: Any) -> None:
    serve([row(PICTURE, ["seven", "7"])])
    with_several = load(SOURCE)
    serve([row(PICTURE, "seven")])
    assert with_several.summary.digest == load(SOURCE).summary.digest


def test_columns_may_be_missing_on_purpose(load: Load, serve: Any) -> None:
    serve([row(PICTURE)])
    samples = load({**SOURCE, "image_column": None, "answer_column": None})
    assert samples.summary.images == 0
    assert samples[0].prompt_length == len(samples[0])


def test_a_local_data_set_starts_at_the_yaml_file(load: Load, serve: Any, tmp_path: Path) -> None:
    (tmp_path / "someone" / "charts").mkdir(parents=True)
    asked = serve([row(PICTURE)])
    load(SOURCE)
    assert asked[0][0] == (str(tmp_path / "someone/charts"), None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": None, "query": "What?", "labels": "7"}], "'mine': someone/charts has no column 'label'"),
        ([], "'mine': someone/charts has no rows in its split 'train'"),
        ([row(PICTURE, query=None)], r"someone/charts\[0\]\.query is None, not a text"),
        ([row(PICTURE, [])], r"someone/charts\[0\]\.label is \[\], not a text"),
        ([row("a.png")], r"someone/charts\[0\]: the image column holds the text 'a.png'"),
        ([row({"bytes": None, "path": None})], r"someone/charts\[0\]: an image has neither bytes nor a path"),
        ([row(b"no image")], r"someone/charts\[0\]: image 1 \(8 bytes\) is not an image"),
        ([row(3)], r"someone/charts\[0\]: image 1 is a int, which is no image"),
    ],
)
def test_bad_rows(load: Load, serve: Any, rows: list[dict[str, Any]], message: str) -> None:
    serve(rows)
    with pytest.raises(NvlmError, match=message):
        load(SOURCE)


def test_what_the_package_raises_becomes_a_sentence(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **names: Any) -> Rows:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(NvlmError, match="someone/charts cannot be loaded: ConnectionError: no network"):
        load(SOURCE)
