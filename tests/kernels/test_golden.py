"""Byte for byte what the published encoder wrote, on every backend: codes, norms and decoded weights."""

import numpy as np
import torch
from tq_kernels.tensors import decode_tensor, encode_tensor

from tqcli.codec import turboquant


def test_encode(golden, backend):
    tables = turboquant.tables(golden["bits"], golden["group_size"], 42)
    codes, norms = encode_tensor(golden["input"], tables, scale="norm")
    assert torch.equal(codes, golden["tq_packed"])
    assert norms.shape == golden["tq_norms"].shape
    assert np.array_equal(norms.numpy().view(np.uint32), golden["tq_norms"].numpy().view(np.uint32))


def test_decode(golden, backend):
    tables = turboquant.tables(golden["bits"], golden["group_size"], 42)
    columns = golden["input"].shape[-1]
    weight = decode_tensor(golden["tq_packed"], golden["tq_norms"], columns, tables, torch.float32)
    expected = golden["decoded"].reshape(weight.shape)
    assert np.array_equal(weight.numpy().view(np.uint32), expected.numpy().view(np.uint32))


def test_decode_rounds_once(golden, backend):
    tables = turboquant.tables(golden["bits"], golden["group_size"], 42)
    columns = golden["input"].shape[-1]
    for dtype in (torch.bfloat16, torch.float16):
        weight = decode_tensor(golden["tq_packed"], golden["tq_norms"], columns, tables, dtype)
        expected = golden["decoded"].reshape(weight.shape).to(dtype)
        assert torch.equal(weight.view(torch.int16), expected.view(torch.int16))


def test_codes_of_whole_rows(golden, backend):
    tables = turboquant.tables(golden["bits"], golden["group_size"], 42)
    columns, norms = golden["input"].shape[-1], golden["tq_norms"]
    joined = golden["tq_packed"].reshape(len(norms), -1)
    one = decode_tensor(joined, norms, columns, tables, torch.float32)
    other = decode_tensor(golden["tq_packed"], norms, columns, tables, torch.float32)
    assert torch.equal(one, other)
