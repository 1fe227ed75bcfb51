"""Every field of a bundle's manifest, changed one at a time: refused, and named, with the way out.

The digest and the copy inside the manifest are made again after a change where that is said, so that it is
the bundle's other files that contradict it, and not its own seal.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy import Engine
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import EngineManifest, sealed
from nvlm_deploy.config.mismatch import leaves
from nvlm_deploy.config.verified import write_result
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

# What was measured after the build stands nowhere but in the manifest.
ONLY_IN_THE_MANIFEST = "results."
COMMAND = "nvlm-build engine CHECKPOINT --recipe "


@pytest.fixture(scope="module", params=["D", "H"])
def sample(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle with a verification's result, so that every field has something in it.

    That of NVLM-D is calibrated; that of NVLM-H has a graph for tiles.
    """
    directory = tmp_path_factory.mktemp("mutation") / "bundle"
    checkpoint, recipe = tiny_checkpoint, ["fp8", "--set", "calibration.count=2"]
    if request.param == "H":
        checkpoint, recipe = directory.with_name("checkpoint"), ["int8"]
        write_random_checkpoint(cross_style_config(TINY_SHAPE, "H", [1]), checkpoint)
    arguments = ["engine", str(checkpoint), "--target", "cpu-x86", "--no-verify", "-o", str(directory)]
    assert run([*arguments, "--recipe", *recipe]) == 0
    figures = {"kl": {"figure": 0.01, "limit": 0.05, "place": "image 3"}, "tiles": {"figure": "inf"}}
    result = {"passed": True, "failed": [], "prompts": 40, "figures": figures, "versions": {"torch": "2.13"}}
    write_result(directory, EngineManifest.read(directory), result)
    return directory


@pytest.fixture(scope="module")
def written(sample: Path) -> dict[str, Any]:
    """The fields of the manifest as they were written."""
    raw: dict[str, Any] = json.loads((sample / "manifest.json").read_text())
    return {name: value for name, value in raw.items() if name not in ("manifest_copy", "manifest_sha256")}


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return {"hf": "megatron"}.get(value, value + "~")
    return ["novelty"] if isinstance(value, list) else {"novelty": 1}


def mutants(written: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field, and the manifest in which it alone is another."""
    for field, value in leaves(written):
        mutant = copy.deepcopy(written)
        place: Any = mutant
        *above, last = [int(part) if part.isdigit() else part for part in split(field, written)]
        for part in above:
            place = place[part]
        place[last] = changed(value)
        yield field, mutant


def split(field: str, value: Any) -> list[str]:
    """The keys of a field; a key may have dots in it."""
    if not field:
        return []
    if isinstance(value, list):
        head, _, rest = field.partition(".")
        return [head, *split(rest, value[int(head)])]
    head = max((key for key in value if field == key or field.startswith(key + ".")), key=len)
    return [head, *split(field[len(head) + 1 :], value[head])]


def only_signed(written: dict[str, Any], mutant: dict[str, Any]) -> str:
    """A changed manifest whose digest holds again, and whose copy is the old one."""
    old = json.loads(sealed(written))["manifest_copy"]
    text = json.dumps({**mutant, "manifest_copy": old, "manifest_sha256": "0" * 64}, indent=2) + "\n"
    head, _, tail = text.rpartition("0" * 64)
    return head + hashlib.sha256(text.encode()).hexdigest() + tail


def refusal(bundle: Path, text: str) -> NvlmError | None:
    """What is said when the bundle is opened with this manifest."""
    path = bundle / "manifest.json"
    before = path.read_bytes()
    path.write_text(text)
    try:
        Engine.open(bundle, threads=1)
    except NvlmError as error:
        return error
    finally:
        path.write_bytes(before)
    return None


def test_the_untouched_manifest_opens(sample: Path, written: dict[str, Any]) -> None:
    assert refusal(sample, sealed(written)) is None
    assert refusal(sample, only_signed(written, written)) is None


def test_every_field_is_bound_to_the_rest_of_the_bundle(sample: Path, written: dict[str, Any]) -> None:
    """The manifest is sealed anew after every change, as its own writer would."""
    unnoticed, unnamed = [], []
    for field, mutant in mutants(written):
        error = refusal(sample, sealed(mutant))
        if error is None:
            unnoticed.append(field)
        elif field not in error.message or COMMAND not in (error.hint or ""):
            unnamed.append((field, error.message, error.hint))
    assert unnamed == []
    assert [field for field in unnoticed if not field.startswith(ONLY_IN_THE_MANIFEST)] == []


def test_every_changed_field_is_named_with_both_values(sample: Path, written: dict[str, Any]) -> None:
    """As after an edit by hand, or a flipped bit: the copy inside knows what was written."""
    wrong, count = [], 0
    for (field, mutant), (_, before) in zip(mutants(written), leaves(written), strict=True):
        count += 1
        error = refusal(sample, only_signed(written, mutant))
        said, hint = (error.message, error.hint or "") if error else ("", "")
        named = field in said and json.dumps(before)[:100] in said
        # The format is refused first of all; an empty object that got a member is named by the member.
        if COMMAND not in hint or not (named or field == "format_version" or (not before and field in said)):
            wrong.append((field, said))
    assert wrong == []
    assert count > 100


def test_a_field_that_is_gone_or_new_is_named(sample: Path, written: dict[str, Any]) -> None:
    for field in written:
        less = {name: value for name, value in written.items() if name != field}
        more = {**written, "novelty": 1}
        for text in (sealed(less), only_signed(written, less)):
            error = refusal(sample, text)
            assert error is not None
            assert field in error.message
        error = refusal(sample, sealed(more))
        assert error is not None
        assert "'novelty' is not known" in error.message
