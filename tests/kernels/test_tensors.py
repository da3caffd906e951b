"""The interface for torch tensors: the same bytes as the interface for arrays, nothing accepted that is not meant."""

import numpy as np
import pytest
import torch
import tq_kernels
from tq_kernels.tensors import decode_tensor, encode_tensor

from tqcli.codec import turboquant

TABLES = turboquant.tables(3, 128, 42)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_equal_to_arrays(dtype, backend):
    weight = torch.randn(3, 5, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, norms = encode_tensor(weight, TABLES, scale="search", threads=2)
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    array = weight.view(torch.uint16).numpy() if dtype == torch.bfloat16 else weight.numpy()
    expected = tq_kernels.encode(array.reshape(15, 200), name, TABLES, scale="search")
    assert np.array_equal(codes.numpy(), expected[0])
    assert np.array_equal(norms.numpy(), expected[1])
    decoded = decode_tensor(codes, norms, 200, TABLES, dtype)
    again = tq_kernels.decode(*expected, 200, TABLES, dtype=name)
    same = decoded.view(torch.uint16).numpy() if dtype == torch.bfloat16 else decoded.numpy()
    assert np.array_equal(same, again)


def test_parameters_and_vectors(backend):
    weight = torch.nn.Parameter(torch.randn(130, generator=torch.Generator().manual_seed(1)))
    codes, norms = encode_tensor(weight, TABLES, scale="norm")
    assert codes.shape == (2, 48)
    assert norms.shape == (1, 2)
    assert not norms.requires_grad


def test_no_rows(backend):
    codes, norms = encode_tensor(torch.empty(0, 256), TABLES, scale="norm")
    assert codes.shape == (0, 48)
    assert norms.shape == (0, 2)
    assert decode_tensor(codes, norms, 256, TABLES, torch.float32).shape == (0, 256)


def test_refused_tensors(backend):
    weight = torch.ones(4, 128)
    with pytest.raises(TypeError, match=r"not torch\.float64"):
        encode_tensor(weight.double(), TABLES, scale="norm")
    with pytest.raises(ValueError, match="contiguous"):
        encode_tensor(torch.ones(128, 4).T, TABLES, scale="norm")
    with pytest.raises(ValueError, match="scale must be"):
        encode_tensor(weight, TABLES, scale="other")
    with pytest.raises(ValueError, match="threads must be"):
        encode_tensor(weight, TABLES, scale="norm", threads=0)
    with pytest.raises(ValueError, match="at least one column"):
        encode_tensor(torch.ones(4, 0), TABLES, scale="norm")


def test_refused_codes(backend):
    codes, norms = encode_tensor(torch.ones(4, 128), TABLES, scale="norm")
    with pytest.raises(TypeError, match="int8"):
        decode_tensor(codes.to(torch.int8), norms, 128, TABLES, torch.float32)
    with pytest.raises(TypeError, match=r"torch\.int32"):
        decode_tensor(codes, norms, 128, TABLES, torch.int32)
    with pytest.raises(ValueError, match="need norms"):
        decode_tensor(codes, norms, 256, TABLES, torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        decode_tensor(codes.T.contiguous().T, norms, 128, TABLES, torch.float32)
    with pytest.raises(ValueError, match="codes are on"):
        decode_tensor(codes, norms.to("meta"), 128, TABLES, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scale", ["norm", "search"])
def test_equal_on_the_gpu(scale):
    weight = torch.randn(64, 1000, generator=torch.Generator().manual_seed(2)).bfloat16()
    codes, norms = encode_tensor(weight, TABLES, scale=scale)
    gpu_codes, gpu_norms = encode_tensor(weight.cuda(), TABLES, scale=scale)
    assert torch.equal(gpu_codes.cpu(), codes)
    assert torch.equal(gpu_norms.cpu(), norms)
    decoded = decode_tensor(gpu_codes, gpu_norms, 1000, TABLES, torch.bfloat16)
    assert torch.equal(decoded.cpu(), decode_tensor(codes, norms, 1000, TABLES, torch.bfloat16))
