from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nvlm_deploy.config import catalog
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.target import Target
from nvlm_deploy.errors import NvlmError, UsageError


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    path = tmp_path / "board.yaml"
    path.write_text(catalog.find("target", "cpu-x86").path.read_text())
    return path


def test_the_shipped_targets_are_listed_and_valid() -> None:
    names = catalog.list_names("target")
    assert {"cpu-x86", "cpu-arm64"} <= set(names)
    for name in names:
        assert load_yaml_model("target", name, Target).name == name


def test_the_catalog_of_calibration_sets_is_where_the_folder_is(repository: Path) -> None:
    file = catalog.find("calibration set", "documents")
    assert file.label == "calibration/sets/documents.yaml"
    assert file.path.read_text() == (repository / file.label).read_text()


def test_a_target_is_found_by_path(target_file: Path) -> None:
    assert load_yaml_model("target", str(target_file), Target).name == "cpu-x86"


def test_an_unknown_name_brings_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="there is no target 'cpu-x68'") as caught:
        catalog.find("target", "cpu-x68")
    assert caught.value.hint == "did you mean 'cpu-x86' or 'cpu-arm64'?"


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml does not exist"):
        catalog.find("target", str(tmp_path / "nowhere.yaml"))


def test_a_repeated_key_is_an_error_with_its_line(target_file: Path) -> None:
    target_file.write_text(target_file.read_text() + "architecture: x86_64\n")
    lines = target_file.read_text().count("\n")
    with pytest.raises(NvlmError, match=rf"board\.yaml:{lines}: the key 'architecture' is there twice"):
        load_yaml_model("target", str(target_file), Target)


def test_an_unknown_key_names_file_and_key(target_file: Path) -> None:
    target_file.write_text(target_file.read_text().replace("architecture:", "architectre:"))
    with pytest.raises(NvlmError, match=r"board\.yaml: the key 'architectre' is not known \(and 1 more\)"):
        load_yaml_model("target", str(target_file), Target)


def test_an_extra_key_brings_the_nearest_one(target_file: Path) -> None:
    target_file.write_text(target_file.read_text() + "versionz: {}\n")
    with pytest.raises(NvlmError, match=r"board\.yaml: the key 'versionz' is not known") as caught:
        load_yaml_model("target", str(target_file), Target)
    assert caught.value.hint == "did you mean 'versions'?"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", ""])
def test_a_file_must_be_a_mapping(target_file: Path, text: str) -> None:
    target_file.write_text(text)
    with pytest.raises(NvlmError, match="must hold a mapping"):
        load_yaml_model("target", str(target_file), Target)


def test_broken_yaml_names_file_and_line(target_file: Path) -> None:
    target_file.write_text("name: a\ndescription: [\n")
    with pytest.raises(NvlmError, match=r"board\.yaml:3: "):
        load_yaml_model("target", str(target_file), Target)


def test_an_override_is_applied_with_its_yaml_type() -> None:
    target = load_yaml_model("target", "cpu-x86", Target, ["max_context=512", "description=mine"])
    assert (target.max_context, target.description) == (512, "mine")


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("max_context=none", "max_context=none: max_context is 'none'", None),
        ("max_contex=1", "the key 'max_contex' is not known", "did you mean 'max_context'?"),
        ("name.first=x", "name is the value 'cpu-x86' and has no keys", None),
        ("max_context", "not of the form key.path=value", "for example"),
        ("a..b=1", "not of the form key.path=value", "for example"),
        ("name=[", "not valid YAML", None),
    ],
)
def test_a_refused_override_names_itself(override: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        load_yaml_model("target", "cpu-x86", Target, [override])
    assert caught.value.message.startswith(f"--set {override}")
    assert message in caught.value.message
    assert (caught.value.hint or "").startswith(hint or "")


def test_every_shipped_yaml_is_named_like_its_file() -> None:
    kinds: tuple[catalog.Kind, ...] = ("recipe", "target", "calibration set")
    for kind in kinds:
        for name in catalog.list_names(kind):
            assert yaml.safe_load(catalog.find(kind, name).path.read_text())["name"] == name
