"""Megatron checkpoints that are incomplete, foreign, damaged or hostile."""

from __future__ import annotations

import enum
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nvlm_deploy.checkpoint.megatron import import_megatron
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.errors import NvlmError


def _rank_file(source: Path, rank: int = 1, stage: int = 1) -> Path:
    return source / f"iter_0012000/mp_rank_{rank:02}_{stage:03}/model_optim_rng.pt"


def _edit(source: Path, edit: Callable[[dict[str, Any]], object], **where: int) -> None:
    path = _rank_file(source, **where)
    content = torch.load(path, weights_only=False)
    edit(content["model"])
    torch.save(content, path)


def _rename(model: dict[str, Any]) -> None:
    name = "language_model.decoder.layers.0.mlp.linear_fc2.weight"
    model[name.replace("fc2", "fc3")] = model.pop(name)


def _empty(source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()


def _remove_last_layer(source: Path) -> None:
    for rank in (0, 1):
        _edit(source, lambda model: [model.pop(n) for n in list(model) if f"{LAYER}.1." in n], rank=rank)


LAYER = "language_model.decoder.layers"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "is not a directory"),
    "empty": (
        _empty,
        "holds neither latest_checkpointed_iteration.txt nor mp_rank",
    ),
    "iteration missing": (
        lambda s: (s / "latest_checkpointed_iteration.txt").write_text("13000"),
        "names '13000', but .*iter_0013000 holds no mp_rank",
    ),
    "iteration elsewhere": (
        lambda s: (s / "latest_checkpointed_iteration.txt").write_text("../other"),
        r"names '\.\./other'",
    ),
    "rank missing": (
        lambda s: shutil.rmtree(_rank_file(s).parent),
        r"tensor-parallel rank 1 of pipeline stage 1 has no model_optim_rng\.pt",
    ),
    "strange rank": (
        lambda s: (s / "iter_0012000/mp_rank_00_000_001").mkdir(),
        "mp_rank_00_000_001 is not named mp_rank_TT or mp_rank_TT_PPP",
    ),
    "unknown tensor": (
        lambda s: _edit(s, _rename),
        rf"mp_rank_01/{LAYER}\.2\.mlp\.linear_fc3\.weight is not part of this model",
    ),
    "missing tensor": (
        lambda s: _edit(s, lambda model: model.pop("language_model.output_layer.weight")),
        r"mp_rank_01/language_model\.output_layer\.weight is missing",
    ),
    "missing layer": (
        _remove_last_layer,
        rf"{LAYER}\.3\..* is missing",
    ),
    "wrong shape": (
        lambda s: _edit(s, lambda m: m.update({f"{LAYER}.0.mlp.linear_fc2.weight": torch.zeros(64, 23)})),
        rf"{LAYER}\.2\.mlp\.linear_fc2\.weight has the shape \[64, 23\], .* \[64, 24\]",
    ),
    "no tensor": (
        lambda s: _edit(s, lambda m: m.update({f"{LAYER}.0.mlp.linear_fc2.weight": None})),
        rf"{LAYER}\.2\.mlp\.linear_fc2\.weight has the shape \[\]",
    ),
    "ranks disagree": (
        lambda s: _edit(s, lambda m: m["language_model.decoder.final_layernorm.weight"].add_(1)),
        r"final_layernorm\.weight: the ranks hold different values",
    ),
    "tensor in two stages": (
        lambda s: _edit(s, lambda m: m.update({"vision_model.conv1.bias": torch.zeros(100)})),
        r"vision_model\.conv1\.bias is in an earlier pipeline stage, too",
    ),
    "truncated": (
        lambda s: _rank_file(s).write_bytes(_rank_file(s).read_bytes()[:-5000]),
        "cannot be read as a PyTorch checkpoint",
    ),
    "empty file": (lambda s: _rank_file(s).write_bytes(b""), "cannot be read as a PyTorch checkpoint"),
    "no model": (lambda s: torch.save({"iteration": 1}, _rank_file(s)), "has no 'model' entry"),
    "no dictionary": (lambda s: torch.save([1], _rank_file(s)), "has no 'model' entry"),
    "interleaved": (lambda s: torch.save({"model0": {}}, _rank_file(s)), "has no 'model' entry"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused(source: Path, checkpoint: Path, output: Path, case: str) -> None:
    damage, message = BROKEN[case]
    damage(source)
    with pytest.raises(NvlmError, match=message) as error:
        import_megatron(source, checkpoint, output)
    if case == "unknown tensor":
        assert f"mp_rank_01/{LAYER}.2.mlp.linear_fc2.weight" in str(error.value.hint)
    assert not list(output.glob("*.index.json"))


class _Malicious:
    """Unpickles by calling `function` on `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (shutil.rmtree, r"shutil\.rmtree"), (Path.unlink, "getattr")],
    ids=["system", "eval", "rmtree", "method"],
)
def test_malicious_pickles_run_nothing(
    source: Path,
    checkpoint: Path,
    output: Path,
    tmp_path: Path,
    function: Callable[..., Any],
    name: str,
    old_format: bool,
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    arguments = {
        os.system: f"rm -r {victim}",
        eval: f"__import__('shutil').rmtree({str(victim)!r})",
        shutil.rmtree: str(victim),
        Path.unlink: victim,
    }
    content = {"model": {}, "args": _Malicious(function, arguments[function])}
    torch.save(content, _rank_file(source, 0, 0), _use_new_zipfile_serialization=not old_format)
    with pytest.raises(NvlmError, match=f"refers to .*{name}.*; nothing was executed"):
        import_megatron(source, checkpoint, output)
    assert victim.exists()


def test_megatron_enums_become_inert(
    source: Path, checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments hold members of enums from packages that are not installed where the import runs."""
    module = types.ModuleType("megatron.core.enums")
    ModelType = enum.Enum("ModelType", {"encoder_or_decoder": 1}, module=module.__name__)
    module.ModelType = ModelType  # type: ignore[attr-defined]
    for name in ("megatron", "megatron.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = _rank_file(source)
    content = torch.load(path, weights_only=False)
    content["args"].model_type = ModelType.encoder_or_decoder
    torch.save(content, path)
    monkeypatch.undo()
    assert "megatron.core.enums" not in sys.modules
    import_megatron(source, checkpoint, output)
    CheckpointReader(output)
