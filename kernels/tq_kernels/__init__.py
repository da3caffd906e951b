"""The codec's inner loops, one interface over several backends that agree to the bit.

`encode`, `decode` and `first_non_finite` take NumPy arrays and import no torch while the native library is there;
`tq_kernels.tensors` takes torch tensors. No recipes, no files: the constants come in as `TqTables`.
"""

from tq_kernels.arrays import decode, encode, first_non_finite
from tq_kernels.backends import Backend, KernelsUnavailable, backend
from tq_kernels.types import FloatDtype, NonFiniteWeight, Scale, TqTables

__all__ = [
    "Backend",
    "FloatDtype",
    "KernelsUnavailable",
    "NonFiniteWeight",
    "Scale",
    "TqTables",
    "backend",
    "decode",
    "encode",
    "first_non_finite",
]
