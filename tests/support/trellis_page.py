"""docs/trellis-format.md in plain Python, a weight at a time. Shares no code with the decoders that it checks."""

import math
import struct

import numpy as np


def decode_row(codes: np.ndarray, meta: np.ndarray, columns: int, levels: str, rotation: str, seed: int) -> np.ndarray:
    """One row: uint8 (columns * bits / 8,), int16 (groups,), codebook in hexadecimal -> float32 (columns,)."""
    bits = len(codes) * 8 // columns
    table = struct.unpack("256b", bytes.fromhex(levels))
    signs = [1.0 if word & 1 else -1.0 for word in mersenne_words(seed, 128)]
    found: list[np.float32] = []
    for size, number in zip(group_sizes(columns), meta.tolist(), strict=True):
        first = len(found) * bits // 8
        stream = struct.pack("<H", number & 0xFFFF) + codes[first : first + size * bits // 8].tobytes()
        found += decode_group(stream, size, bits, table, None if rotation == "none" else signs)
    return np.array(found, np.float32)


def group_sizes(columns: int) -> list[int]:
    sizes = [128] * (columns // 128)
    left = columns % 128
    for size in (64, 32, 16):
        if left >= size:
            sizes.append(size)
            left -= size
    assert left == 0
    return sizes


def decode_group(
    stream: bytes, size: int, bits: int, table: tuple[int, ...], signs: list[float] | None
) -> list[np.float32]:
    number = int.from_bytes(stream, "little")
    windows = [number >> (8 + bits + bits * t) & 255 for t in range(size)]
    levels = [table[window] for window in windows]
    field = (number & 0xFFFF) & ((1 << (8 + bits)) - 1)
    scale = struct.unpack("<e", struct.pack("<H", field << (7 - bits)))[0] * 2.0**-16
    if signs is None:
        return [np.float32(level * scale) for level in levels]
    factor = np.float32(scale * float(np.float32(1 / math.sqrt(size))))
    return [
        np.float32(
            np.float32(sum(level * hadamard(t, u) for u, level in enumerate(levels))) * factor * np.float32(sign)
        )
        for t, sign in zip(range(size), signs, strict=False)
    ]


def hadamard(row: int, column: int) -> int:
    return -1 if (row & column).bit_count() & 1 else 1


def mersenne_words(seed: int, count: int) -> list[int]:
    """The first outputs of MT19937 after init_genrand(seed)."""
    state = [seed]
    for index in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + index) & 0xFFFFFFFF)
    for index in range(624):
        joined = (state[index] & 0x80000000) | (state[(index + 1) % 624] & 0x7FFFFFFF)
        state[index] = state[(index + 397) % 624] ^ joined >> 1 ^ (0x9908B0DF if joined & 1 else 0)
    return [temper(word) for word in state[:count]]


def temper(word: int) -> int:
    word ^= word >> 11
    word ^= word << 7 & 0x9D2C5680
    word ^= word << 15 & 0xEFC60000
    return word ^ word >> 18
