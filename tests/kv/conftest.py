"""Small models with random weights, one for each way in which a cache is used."""

import pytest
import torch
from support import tiny_models


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _ready(model):
    tiny_models.randomise(model, seed=3)
    return model.eval()


def _gemma4(**changes):
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    config = Gemma4TextConfig(
        vocab_size=320, vocab_size_per_layer_input=320, hidden_size=64, intermediate_size=96, num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention"] * 3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, sliding_window=24, max_position_embeddings=512, pad_token_id=0,
        eos_token_id=1, bos_token_id=2, global_head_dim=64, **changes,
    )  # fmt: skip
    return _ready(Gemma4ForCausalLM(config))


@pytest.fixture(scope="session")
def gemma4():
    """Sliding and full layers; in the full ones, keys and values are made from the same numbers, by fewer heads."""
    return _gemma4(attention_k_eq_v=True, num_global_key_value_heads=1, hidden_size_per_layer_input=0)


@pytest.fixture(scope="session")
def gemma4_shared():
    """The last two layers use the keys of those before them."""
    return _gemma4(num_kv_shared_layers=2, hidden_size_per_layer_input=16)


@pytest.fixture(scope="session")
def llama():
    """Full attention only, heads of 48 numbers: three blocks of 16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=192, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return _ready(LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def mistral():
    """Sliding windows only."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=320, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=24, max_position_embeddings=512, pad_token_id=0, eos_token_id=1,
        bos_token_id=2,
    )  # fmt: skip
    return _ready(MistralForCausalLM(config))


@pytest.fixture(scope="session")
def deepseek():
    """Latent attention: one head, and keys and values of different sizes."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=320, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=2, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16,
        qk_nope_head_dim=32, v_head_dim=32, max_position_embeddings=512, pad_token_id=0, eos_token_id=1,
        bos_token_id=2,
    )  # fmt: skip
    return _ready(DeepseekV3ForCausalLM(config))


MODELS = ["gemma4", "gemma4_shared", "llama", "mistral", "deepseek"]


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def ids():
    return torch.randint(3, 320, (2, 60), generator=torch.Generator().manual_seed(1))
