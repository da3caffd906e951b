"""How packed weights meet activations: decoded to floating point, or, for some tokens, as products of integers.

"float" decodes what a call needs and multiplies with torch, equal to the bit to the decoded model. "int16" and "int8"
multiply without decoding where they can and where that is faster: on the CPU, with the native kernels, for up to
`most_tokens` (of experts, on average) of bfloat16 or float32 without a gradient. All else (more tokens, other devices
and dtypes, groups of 256 columns, weights that are not packed) computes as with "float". Activations are rounded for
it, one scale a group of columns. To 16 bits that is no more than the order of float32 sums changes (tq3 and tq4 levels
are rounded too, by .0011 and .0033 of the weights' size); to 8 bits it costs some 4e-5 of each result's energy.

Left out: the arithmetic (`tq_kernels.product`), and who says which (`activations`).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from torch import Tensor, is_grad_enabled
from tq_kernels import backend, product_formats
from tq_kernels.backends import BackendName
from tq_kernels.product import Order, groups_are_fast
from tq_kernels.product_formats import ProductFormat
from tq_kernels.product_tensors import product_tensor, takes

from tqcli.codec import turboquant
from tqcli.formats.native_section import NativeFormat
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis

Activations = Literal["float", "int8", "int16"]

# With more tokens decoding once for all of them is faster. Kernels that are not here decode faster at any number.
_MOST_TOKENS: Mapping[BackendName, int] = {"cpu-avx512": 32, "cpu-avx2": 8}
_MOST_BY_GROUPS = 256
# With more than so many, sums by groups are faster where they are fast at all.
_MOST_BY_LANES = 8


def most_tokens() -> int:
    """Tokens of a call for which products are faster than decoding; 0 where they never are."""
    return _MOST_BY_GROUPS if groups_are_fast() else _MOST_TOKENS.get(backend().name, 0)


def order_of_sums(tokens: float) -> Order:
    """The faster one for so many tokens a matrix."""
    return "groups" if tokens > _MOST_BY_LANES and groups_are_fast() else "lanes"


def can_multiply(stored_as: NativeFormat, hidden: Tensor, tokens: float) -> bool:
    """Whether integers apply to activations, of which a weight in this format meets so many tokens."""
    if tokens > most_tokens() or not takes(hidden) or (hidden.requires_grad and is_grad_enabled()):
        return False
    return stored_as.format == "trellis" or stored_as.group_size in product_formats.GROUP_SIZES


def multiply(
    stored_as: NativeFormat,
    codes: Tensor,
    scales: Tensor,
    hidden: Tensor,
    activations: Activations,
    *,
    threads: int,
    matrices: int = 1,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(tokens, columns) -> (tokens, rows), by integers; see `can_multiply`.

    matrices: that lie one behind the other. pairs: numbers of them and of tokens, (n,) each; the result is (n, rows).
    """
    products = len(hidden) if pairs is None else len(pairs[0])
    return product_tensor(
        product_format(stored_as),
        codes,
        scales,
        hidden,
        matrices=matrices,
        pairs=pairs,
        activation_bits=8 if activations == "int8" else 16,
        order=order_of_sums(products / matrices),
        threads=threads,
    )


@lru_cache(maxsize=64)
def product_format(stored_as: NativeFormat) -> ProductFormat:
    """What the kernels know of a format. ValueError for groups of 256 columns."""
    if isinstance(stored_as, Trellis):
        return product_formats.of_trellis(stored_as.tables)
    if isinstance(stored_as, Tq):
        return product_formats.of_tq(turboquant.tables(stored_as.bits, stored_as.group_size, stored_as.seed))
    return product_formats.of_uniform(stored_as.bits, stored_as.group_size)
