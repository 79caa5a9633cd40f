"""Newton-Schulz: bring the singular values of matrices near 1; one after the other, or batched for a GPU.

Keller Jordan's coefficients (https://kellerjordan.github.io/posts/muon/): X <- a X + b (X X^T) X + c (X X^T)^2 X from
X = U / ||U||. In float32, long matrices are iterated as *Gram Newton-Schulz* does (Dao AI Lab, 2026,
https://dao-lab.ai/blog/2026/gram-newton-schulz): on the small X X^T instead of X, the same function of X.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # steepest at zero among those that do not diverge
EPS = 1e-7
# A batch of its own costs some fifteen launches of 4 us, in which a GPU multiplies and adds at least so often.
_WORTH_A_BATCH = 5e9
_LONG = 3  # columns per row from which iterating on the Gram matrix takes less time
# Rounding makes small eigenvalues of a Gram matrix negative, and each iteration multiplies them by _A squared.
_RESTART = 3


def orthogonalize(matrix: Tensor, iterations: int) -> Tensor:
    """Replace the singular values of float [..., m, n] matrices by values near 1.

    The result is bfloat16 on a GPU, as published, unless it is one before Ampere, which emulates that. It is float32 on
    a CPU, where it costs a few percent of a step: with bfloat16, gradients that differ in their last bit produce
    updates that differ by 1e-2, and runs on one and on two processes soon diverge.
    """
    return iterate(matrix.to(torch.bfloat16 if matrix.is_cuda and _gpu_has_bf16() else torch.float32), iterations)


@functools.cache
def _gpu_has_bf16() -> bool:
    """Whether this process's GPU has bfloat16 arithmetic."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def iterate(x: Tensor, iterations: int) -> Tensor:
    """Perform the iteration on [..., m, n] matrices, in their own precision."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # use the smaller of X X^T and X^T X
        x = x.mT
    # No singular value above 1, as the iteration requires to converge.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    if x.shape[-1] >= _LONG * x.shape[-2] and x.dtype != torch.bfloat16:  # its 8 bits would need more restarts
        for begin in range(0, iterations, _RESTART):
            x = _gram_factor(x @ x.mT, min(_RESTART, iterations - begin)) @ x
    else:
        for _ in range(iterations):
            x = _multiply_add(x, _polynomial(x @ x.mT), x, beta=_A)
    return x.mT if tall else x


def _gram_factor(gram: Tensor, iterations: int) -> Tensor:
    """Return the [..., m, m] matrix by which ``iterations`` multiply X, from X X^T."""
    factor = _factor(gram)
    product = factor
    for _ in range(iterations - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product


def _factor(gram: Tensor) -> Tensor:
    """Return a I + b G + c G^2, by which one iteration multiplies X."""
    factor = _polynomial(gram)
    factor.diagonal(dim1=-2, dim2=-1).add_(_A)
    return factor


def _polynomial(gram: Tensor) -> Tensor:
    """Return b G + c G^2."""
    return _multiply_add(gram, gram, gram, beta=_B, alpha=_C)


def _multiply_add(added: Tensor, left: Tensor, right: Tensor, *, beta: float, alpha: float = 1.0) -> Tensor:
    """Return beta * added + alpha * left @ right for [..., m, n] matrices."""
    function = torch.addmm if added.ndim == 2 else torch.baddbmm
    return function(added, left, right, beta=beta, alpha=alpha)


class PaddedBatches:
    """The matrices of a vector as few batches, padded with zeros, which the iteration keeps.

    Args:
        shapes: (rows, columns) of each matrix; the vector has them one after the other, row by row.
        device: of the vector.

    Attributes:
        root_of_rows: float32 [matrices], the Frobenius norm of a matrix whose rows are unit vectors.
        owner: int64 [n], which matrix each of the vector's n numbers is of.
        zero: float32 [1], a 0 that is put behind the vector for the padding.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> None:
        counts = torch.tensor([rows * columns for rows, columns in shapes])
        scales = torch.tensor([max(1.0, rows / columns) ** 0.5 for rows, columns in shapes])
        self._batches = [_batch(group, shapes, device) for group in _groups(shapes)]
        # A batch's result is put behind those before it; this finds each number of the vector there.
        self._back = torch.cat([batch.origins for batch in self._batches]).argsort()[: int(counts.sum())].to(device)
        owner = torch.arange(len(shapes)).repeat_interleave(counts)
        self._scale = None if max(scales) == 1 else scales[owner].to(device)
        self.owner, self.zero = owner.to(device), torch.zeros(1, device=device)
        self.root_of_rows = torch.tensor([rows**0.5 for rows, _ in shapes]).to(device)

    def orthogonalize(self, vector: Tensor, iterations: int) -> Tensor:
        """Orthogonalize the matrices, times sqrt(max(1, rows / columns)).

        Args:
            vector: float32 [n + 1], with ``zero`` at its end.

        Returns:
            float32 [n].
        """
        results = [
            orthogonalize(vector.index_select(0, batch.places).view(batch.shape), iterations).reshape(-1)
            for batch in self._batches
        ]
        result = (results[0] if len(results) == 1 else torch.cat(results)).index_select(0, self._back).to(vector.dtype)
        return result if self._scale is None else result * self._scale


@dataclass(frozen=True)
class _Batch:
    """Matrices of a vector, padded to one shape.

    Attributes:
        shape: matrices, rows, columns; at most as many rows as columns.
        places: int32 [matrices * rows * columns], on the device: where each number is in the vector.
        origins: int64, likewise, on the CPU; padding is beyond the vector's end.
    """

    shape: tuple[int, int, int]
    places: Tensor
    origins: Tensor


def _groups(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group matrices: those that cost little more where they are padded to the sides of larger ones."""
    sides = [(min(shape), max(shape)) for shape in shapes]
    groups: list[list[int]] = []
    for index in sorted(range(len(shapes)), key=lambda one: sides[one], reverse=True):
        for group in groups:
            rows, columns = (max(sides[one][side] for one in (*group, index)) for side in (0, 1))
            extra = (len(group) + 1) * _cost(rows, columns) - sum(_cost(*sides[one]) for one in (*group, index))
            if extra < _WORTH_A_BATCH:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _cost(rows: int, columns: int) -> float:
    """Multiplications and additions of five iterations."""
    return 5.0 * (2 * rows * rows * columns + rows**3)


def _batch(group: Sequence[int], shapes: Sequence[tuple[int, int]], device: torch.device) -> _Batch:
    rows, columns = max(min(shapes[one]) for one in group), max(max(shapes[one]) for one in group)
    end = sum(m * n for m, n in shapes)
    origins = torch.full((len(group), rows, columns), end)
    for matrix, one in zip(origins, group, strict=True):
        (m, n), begin = shapes[one], sum(m * n for m, n in shapes[:one])
        numbers = torch.arange(begin, begin + m * n).view(m, n)
        numbers = numbers if m <= n else numbers.T
        matrix[: numbers.shape[0], : numbers.shape[1]] = numbers
    shape = len(group), rows, columns
    return _Batch(shape, origins.flatten().to(device, torch.int32), origins.flatten())
