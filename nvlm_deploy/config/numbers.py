"""Numbers as people write them in YAML."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


# YAML 1.1 takes 1e-4 for a text, because it has no dot.
Number = Annotated[float, BeforeValidator(_number)]
