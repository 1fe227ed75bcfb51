"""Find recipes, calibration sets, targets and training configs by name or by path, and read them strictly."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from nvlm_deploy.config.overrides import Override
from nvlm_deploy.config.validation import explain
from nvlm_deploy.config.yaml_file import parse_mapping
from nvlm_deploy.errors import NvlmError, UsageError, did_you_mean

Kind = Literal["recipe", "target", "calibration set", "training config"]
Schema = TypeVar("Schema", bound=BaseModel)

# The mounted package, and the folder that it is mounted from in a source tree.
_FOLDERS: dict[Kind, tuple[str, str]] = {
    "recipe": ("nvlm_deploy.catalog.quantization", "quantization"),
    "target": ("nvlm_deploy.catalog.targets", "engines/targets"),
    "calibration set": ("nvlm_deploy.catalog.calibration", "calibration/sets"),
    "training config": ("nvlm_deploy.train.configs", "nvlm_deploy/train/configs"),
}


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One YAML file: where it is, and how errors call it."""

    path: Path
    label: str


def list_names(kind: Kind) -> tuple[str, ...]:
    """Return the names that the catalog of `kind` ships, sorted, without bases such as `_common`."""
    return tuple(sorted(path.stem for path in _folder(kind).glob("[!_]*.yaml")))


def find(kind: Kind, name_or_path: str) -> CatalogFile:
    """Find a shipped file by its name, or any file by a path that ends in .yaml or .yml.

    Raises:
        UsageError: there is no such name or file; the hint names the nearest ones.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"the {kind} file {path} does not exist")
        return CatalogFile(path, str(path))
    names = list_names(kind)
    if name_or_path not in names:
        raise UsageError(
            f"there is no {kind} '{name_or_path}'",
            hint=did_you_mean(name_or_path, names) or f"give a name or the path of a {kind} file (.yaml)",
        )
    return CatalogFile(_folder(kind) / f"{name_or_path}.yaml", f"{_FOLDERS[kind][1]}/{name_or_path}.yaml")


def load_yaml_model(
    kind: Kind, name_or_path: str, schema: type[Schema], overrides: Sequence[str] = ()
) -> Schema:
    """Read one file of a catalog into `schema`, after setting `key.path=value` overrides.

    Raises:
        UsageError: an unknown name, or an override that the schema refuses.
        NvlmError: the file is not what the schema says; the message names file and key.
    """
    file = find(kind, name_or_path)
    return validate(_read_with_bases(kind, file, ()), schema, file.label, overrides)


def validate(data: dict[str, Any], schema: type[Schema], label: str, overrides: Sequence[str] = ()) -> Schema:
    """Read `data` into `schema`, after setting `key.path=value` overrides in it; `label` is for errors.

    Raises:
        UsageError, NvlmError: as `load_yaml_model`.
    """
    applied = [Override.parse(text) for text in overrides]
    for override in applied:
        override.apply(data)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise explain(error, schema, label, applied) from None


def read_yaml(file: CatalogFile) -> dict[str, Any]:
    """Read the mapping that `file` holds, as it is written."""
    try:
        text = file.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NvlmError(f"{file.label} cannot be read: {error}") from None
    return parse_mapping(text, file.label)


def _read_with_bases(kind: Kind, file: CatalogFile, heirs: tuple[Path, ...]) -> dict[str, Any]:
    """Read `file` on top of what it `extends`: mappings merge key by key, all other values replace."""
    if file.path in heirs:
        raise NvlmError(f"{file.label}: it extends itself, by way of {heirs[-1].name}")
    data = read_yaml(file)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise NvlmError(f"{file.label}: extends is {base!r}: give one name or path")
    try:
        base_file = _find_base(kind, base, file.path.parent)
    except UsageError as error:
        raise NvlmError(f"{file.label}: extends: {error.message}", hint=error.hint) from None
    return _merge(_read_with_bases(kind, base_file, (*heirs, file.path)), data)


def _find_base(kind: Kind, base: str, folder: Path) -> CatalogFile:
    """Find a base by its path, relative to the heir, or by a name: of a recipe, or of an underscored file."""
    if base.endswith((".yaml", ".yml")):
        return find(kind, str(folder / base))
    path = _folder(kind) / f"{base}.yaml"
    if base.startswith("_") and path.is_file():
        return CatalogFile(path, f"{_FOLDERS[kind][1]}/{base}.yaml")
    return find(kind, base)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merge(below, value)
        merged[key] = value
    return merged


def _folder(kind: Kind) -> Path:
    package, source_folder = _FOLDERS[kind]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        # A source tree that is on the path without being installed has no mounts.
        return Path(__file__).resolve().parents[2] / source_folder
    return Path(next(iter(module.__path__)))
