"""Thresholds follow the bits of a recipe, and what the recipe states."""

from __future__ import annotations

import pytest

from nvlm_deploy.config.catalog import list_names, load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import UsageError


def recipe(name: str, *changes: str) -> Recipe:
    return load_yaml_model("recipe", name, Recipe, changes)


def test_fewer_bits_are_allowed_more() -> None:
    limits = [recipe(name).verify for name in ("fp16", "int8", "int4-rtn")]
    assert [each.image_kl for each in limits] == sorted(each.image_kl for each in limits)
    assert len({each.image_kl for each in limits}) == 3
    assert [each.decoder_cosine for each in limits] == sorted(
        (e.decoder_cosine for e in limits), reverse=True
    )


def test_tower_and_decoder_have_the_limits_of_their_own_bits() -> None:
    mixed, int8, int4 = (recipe(name).verify for name in ("int4-rtn-vit-int8", "int8", "int4-rtn"))
    assert mixed.tower_cosine == int8.tower_cosine
    assert mixed.decoder_cosine == int4.decoder_cosine
    assert mixed.image_kl == int4.image_kl


def test_a_recipe_states_only_what_differs() -> None:
    changed = recipe("int8", "verify.image_kl=0.5").verify
    assert changed.image_kl == 0.5
    assert changed.text_kl == recipe("int8").verify.text_kl


@pytest.mark.parametrize("name", list_names("recipe"))
def test_a_resolved_recipe_reads_as_itself(name: str) -> None:
    resolved = recipe(name)
    assert Recipe.model_validate(resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("verify.imag_kl=1", "verify.imag_kl' is not known"),
        ("verify.image_kl=-1", "verify.image_kl is -1"),
        ("verify.image_top1=2", "verify.image_top1 is 2"),
        ("verify=3", "verify is 3"),
    ],
)
def test_what_is_no_threshold_is_refused(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe("int8", change)


def test_a_refused_weight_is_the_error_that_is_reported() -> None:
    with pytest.raises(UsageError, match=r"weights\.vision is 3") as caught:
        recipe("int8", "weights.vision=3")
    assert "more)" not in caught.value.message
