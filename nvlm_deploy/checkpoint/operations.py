"""The closed set of operations that a weight rule may use.

Every operation turns a tuple of tensors into a tuple of tensors and knows its inverse, so that one
table serves both directions. All of them also work on meta tensors: shapes are inferred by running
the rules themselves. Two inverses do not restore what was removed: that of `Slice` fills with a
constant, which is what the files hold there, and that of `Largest` gives every tensor the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch

from nvlm_deploy.errors import NvlmError

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Join all tensors along `dim`, where their lengths are `sizes`."""

    dim: int
    sizes: tuple[int, ...]

    def apply(self, tensors: Tensors) -> Tensors:
        if len(tensors) == 1:
            return tensors
        shape = list(tensors[0].shape)
        shape[self.dim] = sum(self.sizes)
        joined = tensors[0].new_empty(shape)
        # Not torch.cat: on meta tensors it loads 800 modules of torch's compiler first.
        for piece, tensor in zip(joined.split_with_sizes(self.sizes, self.dim), tensors, strict=True):
            piece.copy_(tensor)
        return (joined,)

    def inverse(self) -> Operation:
        return Split(self.dim, self.sizes)


@dataclass(frozen=True, slots=True)
class Split:
    """Cut the one tensor along `dim` into pieces of `sizes`."""

    dim: int
    sizes: tuple[int, ...]

    def apply(self, tensors: Tensors) -> Tensors:
        (tensor,) = tensors
        return tuple(tensor.split_with_sizes(self.sizes, self.dim))

    def inverse(self) -> Operation:
        return Concat(self.dim, self.sizes)


@dataclass(frozen=True, slots=True)
class Slice:
    """Keep `[start, stop)` of `dim`, whose length is `length`, in every tensor; `fill` is for the inverse."""

    dim: int
    start: int
    stop: int
    length: int
    fill: float = 0.0

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.narrow(self.dim, self.start, self.stop - self.start) for tensor in tensors)

    def inverse(self) -> Operation:
        return Pad(self.dim, self.start, self.stop, self.length, self.fill)


@dataclass(frozen=True, slots=True)
class Pad:
    """Put every tensor at `[start, stop)` of `dim` in a tensor of `fill` with `length` there."""

    dim: int
    start: int
    stop: int
    length: int
    fill: float = 0.0

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(self._pad(tensor) for tensor in tensors)

    def _pad(self, tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        shape[self.dim] = self.length
        padded = tensor.new_full(shape, self.fill)
        padded.narrow(self.dim, self.start, self.stop - self.start).copy_(tensor)
        return padded

    def inverse(self) -> Operation:
        return Slice(self.dim, self.start, self.stop, self.length, self.fill)


@dataclass(frozen=True, slots=True)
class Reshape:
    """Give every tensor the shape `after`; it had the shape `before`. Either may hold one -1."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.reshape(self.after) for tensor in tensors)

    def inverse(self) -> Operation:
        return Reshape(self.after, self.before)


@dataclass(frozen=True, slots=True)
class Transpose:
    """Swap two dimensions of every tensor."""

    dim0: int
    dim1: int

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.transpose(self.dim0, self.dim1) for tensor in tensors)

    def inverse(self) -> Operation:
        return self


@dataclass(frozen=True, slots=True)
class Unify:
    """Take one of `count` tensors that must be equal, of ranks or what else `owners` says."""

    count: int
    owners: str = "the ranks"

    def apply(self, tensors: Tensors) -> Tensors:
        return (_only(tensors, self.owners),)

    def inverse(self) -> Operation:
        return Replicate(self.count)


@dataclass(frozen=True, slots=True)
class Replicate:
    """Hand the one tensor to `count` takers."""

    count: int

    def apply(self, tensors: Tensors) -> Tensors:
        (tensor,) = tensors
        return (tensor,) * self.count

    def inverse(self) -> Operation:
        return Unify(self.count)


@dataclass(frozen=True, slots=True)
class Shard:
    """Cut tensors of `sizes` along `dim` into the shards of `count` ranks, joined rank by rank.

    `pieces` of each tensor are different: all that divide it among the ranks, fewer where ranks next to
    each other get the same one (KV heads), one where every rank gets the whole.
    """

    dim: int
    sizes: tuple[int, ...]
    pieces: tuple[int, ...]
    count: int

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """Length of a piece of each tensor along `dim`."""
        return tuple(size // pieces for size, pieces in zip(self.sizes, self.pieces, strict=True))

    def apply(self, tensors: Tensors) -> Tensors:
        cut = [
            Split(self.dim, (size,) * pieces).apply((tensor,))
            for tensor, size, pieces in zip(tensors, self.piece_sizes, self.pieces, strict=True)
        ]
        join = Concat(self.dim, self.piece_sizes)
        return tuple(
            join.apply(tuple(parts[rank * len(parts) // self.count] for parts in cut))[0]
            for rank in range(self.count)
        )

    def inverse(self) -> Operation:
        return Unshard(self.dim, self.sizes, self.pieces, self.count)


@dataclass(frozen=True, slots=True)
class Unshard:
    """Put together what `Shard` cut; copies of one piece must be equal."""

    dim: int
    sizes: tuple[int, ...]
    pieces: tuple[int, ...]
    count: int

    def apply(self, tensors: Tensors) -> Tensors:
        split = Split(self.dim, self.inverse().piece_sizes)
        by_rank = [split.apply((tensor,)) for tensor in tensors]
        whole = []
        for number, pieces in enumerate(self.pieces):
            copies = self.count // pieces
            found = [parts[number] for parts in by_rank]
            distinct = tuple(_only(tuple(found[i : i + copies])) for i in range(0, self.count, copies))
            lengths = (self.sizes[number] // pieces,) * pieces
            whole.append(Concat(self.dim, lengths).apply(distinct)[0])
        return tuple(whole)

    def inverse(self) -> Shard:
        return Shard(self.dim, self.sizes, self.pieces, self.count)


@dataclass(frozen=True, slots=True)
class Reinterpret:
    """Read the bytes of every tensor as `after`; they were `before`, of the same width."""

    before: torch.dtype
    after: torch.dtype

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.view(self.after) for tensor in tensors)

    def inverse(self) -> Operation:
        return Reinterpret(self.after, self.before)


@dataclass(frozen=True, slots=True)
class Largest:
    """The elementwise largest of `count` tensors, and at least `floor`."""

    count: int
    floor: float

    def apply(self, tensors: Tensors) -> Tensors:
        return (reduce(torch.maximum, tensors).clamp(min=self.floor),)

    def inverse(self) -> Operation:
        return Replicate(self.count)


@dataclass(frozen=True, slots=True)
class Ones:
    """A vector of ones, float32 [size], that the other layout has no tensor for."""

    size: int

    def apply(self, tensors: Tensors) -> Tensors:
        return (*tensors, torch.ones(self.size))

    def inverse(self) -> Operation:
        return DropOnes(self.size)


@dataclass(frozen=True, slots=True)
class DropOnes:
    """Leave out the last tensor, which must be ones, [size]."""

    size: int

    def apply(self, tensors: Tensors) -> Tensors:
        *others, ones = tensors
        if not ones.is_meta and not (ones == 1).all():
            raise NvlmError("scales that should all be one are not")
        return tuple(others)

    def inverse(self) -> Operation:
        return Ones(self.size)


def _only(tensors: Tensors, owners: str = "the ranks") -> torch.Tensor:
    """Return the one value of all `tensors`."""
    first = tensors[0]
    if not first.is_meta and not all(_same_bytes(first, other) for other in tensors[1:]):
        raise NvlmError(f"{owners} hold different values of a tensor that they should share")
    return first


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    # As bytes, because FP8 tensors cannot be compared; a number equals itself whatever it is.
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return a.dtype == b.dtype and torch.equal(*(t.view(integers[t.dtype.itemsize]) for t in (a, b)))


Operation = (
    Concat
    | Split
    | Slice
    | Pad
    | Reshape
    | Transpose
    | Unify
    | Replicate
    | Shard
    | Unshard
    | Reinterpret
    | Largest
    | Ones
    | DropOnes
)
