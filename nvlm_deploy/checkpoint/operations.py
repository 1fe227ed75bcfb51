"""The closed set of operations that a weight rule may use.

Every operation turns a tuple of tensors into a tuple of tensors and knows its inverse, so that one
table serves both directions. All of them also work on meta tensors: shapes are inferred by running
the rules themselves. The only inverse that does not restore what was removed is `Slice`'s: `Pad`
fills with zeros, which is what the released files hold there.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Keep `[start, stop)` of `dim`, whose length is `length`, in every tensor."""

    dim: int
    start: int
    stop: int
    length: int

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.narrow(self.dim, self.start, self.stop - self.start) for tensor in tensors)

    def inverse(self) -> Operation:
        return Pad(self.dim, self.start, self.stop, self.length)


@dataclass(frozen=True, slots=True)
class Pad:
    """Put every tensor at `[start, stop)` of `dim` in a tensor of zeros with `length` there."""

    dim: int
    start: int
    stop: int
    length: int

    def apply(self, tensors: Tensors) -> Tensors:
        return tuple(self._pad(tensor) for tensor in tensors)

    def _pad(self, tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        shape[self.dim] = self.length
        padded = tensor.new_zeros(shape)
        padded.narrow(self.dim, self.start, self.stop - self.start).copy_(tensor)
        return padded

    def inverse(self) -> Operation:
        return Slice(self.dim, self.start, self.stop, self.length)


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
    """Take one of `count` tensors that must be equal, as replicated over tensor-parallel ranks."""

    count: int

    def apply(self, tensors: Tensors) -> Tensors:
        first = tensors[0]
        if not first.is_meta and not all(torch.equal(first, other) for other in tensors[1:]):
            raise NvlmError("the ranks hold different values of a tensor that they should share")
        return (first,)

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


Operation = Concat | Split | Slice | Pad | Reshape | Transpose | Unify | Replicate
