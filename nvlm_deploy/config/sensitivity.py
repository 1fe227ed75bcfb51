"""What `nvlm-build sensitivity` writes and `nvlm-build auto` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.validation import explain
from nvlm_deploy.errors import NvlmError

RELEASED = "16 bits"
Measure = Literal["kl", "relative-error"]
Granularity = Literal["layer", "group"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OptionLoss(_Section):
    """One way to store a unit, and what the model loses by it.

    recipe: the first candidate that stores the unit so; None for 16 bits, as released. loss: None where it is
    no finite number. top1: share of positions with the same most likely token, if logits were compared.
    """

    label: str
    recipe: str | None
    nbytes: int = Field(ge=0)
    loss: float | None = Field(ge=0, allow_inf_nan=False)
    top1: float | None = None


class UnitLoss(_Section):
    """A layer, the projector or `lm_head`, or one group of their linears that have one input.

    The first of its options is 16 bits, which loses nothing.
    """

    name: str
    part: str
    weights: int = Field(ge=1, description="numbers in its matrices")
    options: list[OptionLoss] = Field(min_length=1)

    def option(self, label: str) -> OptionLoss | None:
        """The option with this label, if the unit has it."""
        return next((option for option in self.options if option.label == label), None)


class UsedCalibration(_Section):
    """The calibration set that scales were chosen by: its name or path, with what was changed in it."""

    name: str
    overrides: list[str]
    digest: str


class UsedPrompts(_Section):
    """What the loss was measured on: a set's name or path, or None for generated documents.

    positions: those whose logits were compared.
    """

    name: str | None
    count: int = Field(ge=1)
    positions: int = Field(ge=1)
    digest: str


class SensitivityReport(_Section):
    """Losses of all units of one checkpoint.

    measure: "kl" is the mean KL divergence of the logits from FP32's, in nats, with only this unit quantized;
    "relative-error" is the squared error of the unit's own output relative to the output's square.
    by: what a unit is. recipes: the candidates, as they were after every override.
    """

    version: Literal[1] = 1
    checkpoint_fingerprint: str
    measure: Measure
    by: Granularity
    recipes: list[Recipe] = Field(min_length=1)
    calibration: UsedCalibration | None
    prompts: UsedPrompts
    units: list[UnitLoss] = Field(min_length=1)
    seconds: float

    def labels(self, *parts: str) -> tuple[str, ...]:
        """Labels of what was measured in `parts` (in all, if none is named), widest storage first."""
        bits: dict[str, float] = {}
        for unit in self.units:
            for option in unit.options[1:]:
                if not parts or unit.part in parts:
                    bits.setdefault(option.label, option.nbytes / unit.weights)
        return tuple(sorted(bits, key=lambda label: -bits[label]))


def read_report(path: Path) -> SensitivityReport:
    """Read a report.

    Raises:
        NvlmError: there is no such file, or it is not what this version writes; names the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NvlmError(f"the report {path} cannot be read: {error}") from None
    try:
        return SensitivityReport.model_validate_json(text)
    except ValidationError as error:
        raise explain(error, SensitivityReport, str(path)) from None
