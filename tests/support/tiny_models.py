"""Tiny random models with the structure of the real ones, made with transformers' classes and saved as on the Hub."""

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 320


def randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    buffers = [
        (name, value)
        for name, value in model.named_buffers()
        if name.endswith(("layer_scalar", "std_scale", "std_bias"))
    ]
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *buffers]:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("layer_scalar"):
                value.copy_(0.5 + 0.1 * noise.abs())
            elif "norm" in name or name.endswith(("scale", "per_expert_scale")):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_(0.08 * noise)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<eoi>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def gemma4(folder: Path) -> None:
    """Mixture of experts with a vision tower, fused experts, tied head, K = V in the global layer."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {
        "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size": 96, "intermediate_size": 144,
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
        "enable_moe_block": True, "num_experts": 6, "top_k_experts": 3, "moe_intermediate_size": 96,
        "sliding_window": 16,
        "max_position_embeddings": 512, "final_logit_softcapping": 30.0, "use_bidirectional_attention": "vision",
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 12, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64, "standardize": True, "use_clipped_linears": False,
    }  # fmt: skip
    config = Gemma4Config(
        text_config=text, vision_config=vision, boi_token_id=4, eoi_token_id=5, image_token_id=6,
        video_token_id=VOCABULARY - 1, audio_token_id=VOCABULARY - 2, dtype="bfloat16", tie_word_embeddings=True,
    )  # fmt: skip
    _save(Gemma4ForConditionalGeneration(config), folder, "200KB")


def qwen3_moe(folder: Path) -> None:
    """Mixture of experts whose experts lie one by one on disk, with a router that is no linear layer."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=160, moe_intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=12, num_experts_per_tok=3,
        decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[], max_position_embeddings=512,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    _save(Qwen3MoeForCausalLM(config), folder, "300KB")


def llama(folder: Path) -> None:
    """Dense, with biases, in one file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, attention_bias=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    _save(LlamaForCausalLM(config), folder, "1GB")


def qwen3(folder: Path) -> None:
    """Dense, head not tied."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    _save(Qwen3ForCausalLM(config), folder, "200KB")


BUILDERS = {"gemma4": gemma4, "qwen3_moe": qwen3_moe, "llama": llama, "qwen3": qwen3}


def _save(model: Any, folder: Path, max_shard_size: str) -> None:
    randomise(model, seed=len(folder.name))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(folder)
