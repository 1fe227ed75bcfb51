"""Where the format of a quantized checkpoint meets the weight table."""

from __future__ import annotations

from dataclasses import replace

from nvlm_deploy.checkpoint.operations import Operation, Pad, Slice
from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.quantization.formats import WeightCodec, weight_codec
from nvlm_deploy.quantization.plan import Storage


def storage_codec(storage: Storage) -> WeightCodec:
    """Return the codec of `storage` in a quantized checkpoint."""
    if storage.format == "int4" and storage.activations == "fp8":
        return weight_codec("w4a8", storage.group_size)
    return weight_codec(storage.format, storage.group_size or 128)


def per_group(rule: Rule, group_size: int) -> Rule:
    """The rule for numbers per row (`group_size` 0), or per row and group of columns, instead of weights."""
    operations: list[Operation] = []
    for operation in rule.operations:
        if isinstance(operation, Pad | Slice) and operation.dim == 1:
            if not group_size:
                continue
            start, stop, length = (
                n // group_size for n in (operation.start, operation.stop, operation.length)
            )
            operation = type(operation)(1, start, stop, length)
        operations.append(operation)
    return replace(rule, operations=tuple(operations))


def per_column(rule: Rule) -> Rule:
    """The rule for one row of numbers per input feature, [1, K], instead of weights."""
    columns = tuple(op for op in rule.operations if isinstance(op, Pad | Slice) and op.dim == 1)
    return replace(rule, operations=columns)
