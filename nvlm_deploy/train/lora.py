"""Adapters by peft: made on the model's own linears, saved in peft's format, merged into a checkpoint.

This is the only module that imports peft.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nvlm_deploy.config.training import LoraSection
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.models.nvlm import Nvlm

if TYPE_CHECKING:
    from peft import PeftModel

_ADAPTER = "default"
# How peft renames what it wraps.
_RENAMED = (".base_layer", f".modules_to_save.{_ADAPTER}", ".original_module")


def add_adapters(model: Nvlm, lora: LoraSection, base: str) -> PeftModel:
    """Wrap the modules that `lora` names, in place; all but adapters and `modules_to_save` is frozen.

    Args:
        model: on the meta device; `adapter_value` and the checkpoint give the values.
        base: the checkpoint, which peft writes down beside the adapters.

    Raises:
        UsageError: a name matches no linear.
        UnsuitableError: peft is not installed.
    """
    with _peft():
        from peft import LoraConfig, get_peft_model

        settings = lora.model_dump()
        config = LoraConfig(**settings, base_model_name_or_path=base)
        # peft overwrites the name in its config with the model's own.
        model.__dict__["name_or_path"] = base
        try:
            wrapped: PeftModel = get_peft_model(
                model, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True
            )
        except ValueError as error:
            raise UsageError(f"lora: {str(error).splitlines()[0]}", hint=_targets_hint(model)) from None
    saved = lora.modules_to_save or []
    for name in saved:
        if not any(module.endswith(name) for module, _ in model.named_modules()):
            raise UsageError(f"lora.modules_to_save: no module is called '{name}'", hint=_targets_hint(model))
    return wrapped


def add_to_weights(wrapped: PeftModel, multiply: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
    """Let linears multiply with the sum of weight and adapter at once, as they will when both are merged.

    Args:
        multiply: gets a linear, its inputs, and what to multiply them with instead of its weight [N, K].
    """
    with _peft():
        from peft.tuners.lora import Linear

    def sum_of(layer: Any, x: Tensor) -> Tensor:
        base = layer.get_base_layer()
        return multiply(base, x, base.weight + layer.get_delta_weight(_ADAPTER))

    for module in wrapped.modules():
        if isinstance(module, Linear):
            module.forward = partial(sum_of, module)  # type: ignore[method-assign]


def checkpoint_name(name: str) -> str:
    """The checkpoint's name of a parameter that peft may have wrapped."""
    for piece in _RENAMED:
        name = name.replace(piece, "")
    return name


def adapter_value(name: str, shape: torch.Size, seed: int) -> Tensor | None:
    """What a new adapter begins with, FP32, the same on every process; None for the checkpoint's own weights.

    As in peft: A is Kaiming-uniform (a = sqrt 5), B is zero, so that the model begins as it was.
    """
    if ".lora_B." in name:
        return torch.zeros(shape)
    if ".lora_A." not in name:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    value = torch.empty(shape)
    torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
    return value


def save_adapters(wrapped: PeftModel, values: Mapping[str, Tensor], directory: Path) -> None:
    """Write adapters so that `PeftModel.from_pretrained` reads them.

    Args:
        values: adapters and `modules_to_save` by the names of the wrapped model.
    """
    state = {f"base_model.model.{name}": value for name, value in values.items()}
    with _peft():
        wrapped.save_pretrained(str(directory), state_dict=state, save_embedding_layers=False)


def merged_model(model: Nvlm, directory: Path) -> Nvlm:
    """Return the model with the adapters of `directory` added to its weights, in place.

    Raises:
        NvlmError: there are no adapters, or they belong to another model.
    """
    if not (directory / "adapter_config.json").is_file():
        raise NvlmError(
            f"{directory} has no adapter_config.json", hint="name the folder `adapter` of a run with lora"
        )
    with _peft():
        from peft import PeftModel

        try:
            wrapped = PeftModel.from_pretrained(model, str(directory), autocast_adapter_dtype=False)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise NvlmError(
                f"the adapters in {directory} do not fit the checkpoint: {reason}",
                hint="merge into the checkpoint that they were trained on",
            ) from None
        merged: Nvlm = wrapped.merge_and_unload()
    return merged


@contextmanager
def _peft() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # peft warns of models without a transformers config, which ours has not.
            warnings.simplefilter("ignore")
            import peft  # noqa: F401

            yield
    except ImportError:
        raise UnsuitableError(
            "adapters need the package peft, which is not installed",
            hint="pip install 'nvlm-deploy[train]', or pip install 'peft>=0.18'",
        ) from None


def _targets_hint(model: Nvlm) -> str:
    linears = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return "linears end in " + ", ".join(sorted(linears))
