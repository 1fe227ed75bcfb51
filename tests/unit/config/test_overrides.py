from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from nvlm_deploy.config.overrides import Override
from nvlm_deploy.config.validation import explain
from nvlm_deploy.errors import NvlmError, UsageError


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    group_size: int


class Sections(BaseModel):
    model_config = ConfigDict(extra="forbid")
    language: Part
    vision: Part | None = None
    keep: list[Part] = []


def refuse(data: dict[str, Any], *overrides: Override) -> NvlmError:
    with pytest.raises(ValidationError) as caught:
        Sections.model_validate(data)
    return explain(caught.value, Sections, "file.yaml", overrides)


def test_nested_keys_and_list_places_are_set() -> None:
    data: dict[str, Any] = {"language": {"group_size": 1}, "keep": [{"group_size": 1}]}
    Override.parse("language.group_size=64").apply(data)
    Override.parse("keep.0.group_size=2").apply(data)
    Override.parse("vision.group_size=128").apply(data)
    parsed = Sections.model_validate(data)
    assert parsed.vision is not None
    assert (parsed.language.group_size, parsed.keep[0].group_size, parsed.vision.group_size) == (64, 2, 128)


@pytest.mark.parametrize("place", ["1", "x", "-1"])
def test_a_place_outside_a_list_is_an_error(place: str) -> None:
    with pytest.raises(UsageError, match=f"keep is a list of 1 and has no place '{place}'"):
        Override.parse(f"keep.{place}.group_size=2").apply({"keep": [{}]})


def test_a_value_may_hold_an_equals_sign() -> None:
    assert Override.parse("name=a=b").value == "a=b"


def test_the_file_is_to_blame_for_what_no_override_touches() -> None:
    override = Override.parse("vision.group_size=1")
    error = refuse({"language": {"group_sise": 1, "group_size": 2}, "vision": {"group_size": 1}}, override)
    assert not isinstance(error, UsageError)
    assert error.message == "file.yaml: the key 'language.group_sise' is not known"
    assert error.hint == "did you mean 'group_size'?"


def test_keys_inside_lists_and_optional_sections_are_known() -> None:
    language = {"group_size": 1}
    assert refuse({"language": language, "keep": [{"group_size": 1, "grup": 1}]}).hint == "known: group_size"
    error = refuse({"language": language, "vision": {"group_size": 1, "group_siz": 1}})
    assert (error.message, error.hint) == (
        "file.yaml: the key 'vision.group_siz' is not known",
        "did you mean 'group_size'?",
    )


def test_a_missing_key_and_a_second_problem_are_told() -> None:
    assert refuse({"keep": [{}]}).message == "file.yaml: the key 'language' is missing (and 1 more)"
