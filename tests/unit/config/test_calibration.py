"""The schema of calibration sets, and the ones that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from nvlm_deploy.config.calibration import (
    CalibrationSet,
    DocumentKind,
    DocumentsSource,
    FolderSource,
    read_calibration_set,
)
from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.synthetic import documents

SET: dict[str, Any] = {
    "name": "mine",
    "description": "my pictures",
    "licence": "CC0-1.0",
    "source": {"kind": "folder", "path": "pictures", "prompt": "What?"},
    "count": 4,
    "seed": 0,
    "max_tokens": 1024,
}


def read(tmp_path: Path, *overrides: str, **changes: Any) -> CalibrationSet:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SET, **changes}))
    spec, base_dir = read_calibration_set(str(path), overrides)
    assert base_dir == tmp_path
    return spec


def test_the_shipped_sets_are_valid() -> None:
    assert set(list_names("calibration set")) >= {"documents", "documents-text"}
    for name in list_names("calibration set"):
        spec, _ = read_calibration_set(name)
        assert spec.name == name
        assert (spec.class_weights.text, spec.class_weights.visual) == (1, 1)


def test_the_two_shipped_sets_differ_in_their_images_alone() -> None:
    seen, told = (read_calibration_set(name)[0] for name in ("documents", "documents-text"))
    changes = {"with_images": False}
    assert isinstance(seen.source, DocumentsSource)
    text_only = seen.model_copy(update={"source": seen.source.model_copy(update=changes)})
    named = {"name": told.name, "description": told.description}
    assert text_only.model_copy(update=named) == told


def test_every_kind_of_document_can_be_chosen() -> None:
    assert set(get_args(DocumentKind)) == set(documents._PAINTERS)


def test_one_prompt_or_several(tmp_path: Path) -> None:
    one = read(tmp_path).source
    several = read(tmp_path, source={**SET["source"], "prompt": ["a", "b"]}).source
    assert isinstance(one, FolderSource)
    assert isinstance(several, FolderSource)
    assert (one.prompt, several.prompt) == (["What?"], ["a", "b"])


def test_class_weights(tmp_path: Path) -> None:
    weights = read(tmp_path, class_weights={"visual": 0.5, "tag": 2}).class_weights
    assert weights.model_dump() == {"text": 1.0, "tag": 2.0, "visual": 0.5, "thumbnail": 1.0}


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    spec = read(tmp_path, "count=32", "class_weights.visual=0.5", "source.path=other")
    assert (spec.count, spec.class_weights.visual) == (32, 0.5)
    assert isinstance(spec.source, FolderSource)
    assert spec.source.path == "other"


HUGGINGFACE = {"kind": "huggingface", "dataset": "a/b", "split": "train"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": 1}, "the key 'sed' is not known"),
        ({"count": 0}, "count is 0: input should be greater than or equal to 1"),
        ({"count": "4"}, "count is '4': input should be a valid integer"),
        (
            {"source": "pictures"},
            r"source is 'pictures': a source is a mapping with a kind \(documents, folder",
        ),
        ({"source": {**SET["source"], "prompt": 3}}, "source.prompt is 3: input should be a valid list"),
        ({"source": {**SET["source"], "prompt": []}}, r"source.prompt is \[\]: list should have at least 1"),
        ({"source": {"path": "pictures"}}, "the key 'source.kind' is missing"),
        (
            {"source": {"kind": "foldr", "path": "pictures"}},
            "source.kind is 'foldr': there is no such kind; did you mean 'folder'",
        ),
        (
            {"source": {**SET["source"], "promt": "What?"}},
            r"source.promt is 'What\?': the kind 'folder' has no such key; did you mean 'prompt'",
        ),
        ({"source": {"kind": "folder", "prompt": "What?"}}, "the key 'source.path' is missing"),
        ({"source": {**SET["source"], "path": ""}}, "source.path is '': string should have at least 1"),
        (
            {"source": {"kind": "documents", "split": "heldout", "with_images": True}},
            "source.split is 'heldout': input should be 'train'",
        ),
        (
            {"source": {"kind": "documents", "split": "train", "with_images": True, "kinds": ["cat"]}},
            "source.kinds.0 is 'cat': input should be 'chart'",
        ),
        ({"source": HUGGINGFACE}, r"the key 'source.revision' is missing \(and 3 more\)"),
        ({"class_weights": {"visul": 1}}, "the key 'class_weights.visul' is not known"),
        ({"class_weights": {"visual": -1}}, "class_weights.visual is -1: input should be greater"),
        ({"class_weights": {"visual": float("inf")}}, "class_weights.visual is inf"),
        (
            {"class_weights": dict.fromkeys(["text", "tag", "visual", "thumbnail"], 0)},
            r"class_weights is \{.*\}: all weights are 0, so nothing would count",
        ),
    ],
)
def test_a_refused_value_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NvlmError, match=rf"mine\.yaml: {message}"):
        read(tmp_path, **changes)


def test_a_refused_override_is_to_blame(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--set source\.pth=x: source\.pth is 'x': the kind 'folder'"):
        read(tmp_path, "source.pth=x")
    with pytest.raises(UsageError, match=r"^--set count=many: count is 'many'"):
        read(tmp_path, "count=many")


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no calibration set 'document'") as caught:
        read_calibration_set("document")
    assert (caught.value.hint or "").startswith("did you mean 'documents'")
