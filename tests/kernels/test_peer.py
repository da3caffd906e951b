"""The same tensors through the published encoder itself."""

import numpy as np
import pytest
import torch
from tq_kernels.tensors import decode_tensor, encode_tensor

from tqcli.codec import turboquant

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("turboquant_vllm")
    checkpoint = pytest.importorskip("turboquant_vllm.checkpoint")
    operations = pytest.importorskip("turboquant_vllm.torch_ops")
    weights = pytest.importorskip("turboquant_vllm.weight_quant")
    return checkpoint, operations, weights


@pytest.mark.parametrize("bits", turboquant.BITS)
@pytest.mark.parametrize("group_size", [64, 128, 256])
def test_equal_bytes(bits, group_size, peer, native):
    checkpoint, operations, weights = peer
    generator = torch.Generator().manual_seed(bits * group_size)
    tables = turboquant.tables(bits, group_size, 42)
    quantizer = operations.PolarQuantTorch(group_size, bits, seed=42, device="cpu")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight = (torch.randn(512, 1000, generator=generator) * 0.02).to(dtype)
        weight[3] = 0
        weight[4, 5:] = 0
        packed, norms = checkpoint._compress_tensor(weight, quantizer, bits, group_size)
        our_codes, our_norms = encode_tensor(weight, tables, scale="norm")
        assert torch.equal(our_codes, packed)
        assert np.array_equal(our_norms.numpy().view(np.uint32), norms.numpy().view(np.uint32))
        indices = weights.unpack_indices(packed, bits, group_size)
        decoded = quantizer.dequantize(indices, norms.reshape(-1)).reshape(512, -1)[:, :1000]
        assert torch.equal(decode_tensor(our_codes, our_norms, 1000, tables, torch.float32), decoded)
