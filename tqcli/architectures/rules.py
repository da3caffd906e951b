"""Rules that several architectures share, named after the modules of transformers that they describe."""

from tqcli.architectures.base import LAYER_PATTERN, TEXT_PATTERN, Role, Rule

_SWITCH = r"(?:experts\.switch_glu|switch_mlp)\."
_EXPERT = r"experts\.(?P<expert>[0-9]{1,6})\."


def in_text(pattern: str, *roles: Role) -> Rule:
    """A tensor of the language model outside of its layers."""
    return Rule(TEXT_PATTERN + pattern, roles)


def in_layer(pattern: str, *roles: Role) -> Rule:
    """A tensor of one decoder layer."""
    return Rule(LAYER_PATTERN + pattern, roles)


def swiglu(module: str) -> tuple[Rule, ...]:
    """A gated feed-forward network with three matrices."""
    return (
        in_layer(module + r"\.gate_proj\.weight", "gate"),
        in_layer(module + r"\.up_proj\.weight", "up"),
        in_layer(module + r"\.down_proj\.weight", "down"),
    )


def experts(module: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> tuple[Rule, ...]:
    """Routed experts: one 3-D tensor for all of them, without `.weight`, or 2-D tensors for each.

    `module` is a pattern for the parent of `experts`, with its dot, or empty. Converted checkpoints hold them under
    other names too: MLX's, with all gates in one tensor, and HLWQ's, with an expert's gate and up in one.
    """
    return (
        in_layer(module + r"experts\.gate_up_proj(?:_e(?P<expert>[0-9]{1,6}))?", "expert_gate", "expert_up"),
        in_layer(module + r"experts\.down_proj(?:_e(?P<expert>[0-9]{1,6}))?", "expert_down"),
        in_layer(module + _SWITCH + r"gate_proj\.weight", "expert_gate"),
        in_layer(module + _SWITCH + r"up_proj\.weight", "expert_up"),
        in_layer(module + _SWITCH + r"down_proj\.weight", "expert_down"),
        in_layer(rf"{module}{_EXPERT}{gate}\.weight", "expert_gate"),
        in_layer(rf"{module}{_EXPERT}{up}\.weight", "expert_up"),
        in_layer(rf"{module}{_EXPERT}{down}\.weight", "expert_down"),
    )


ENDS = (
    in_text(r"embed_tokens\.weight", "embed"),
    in_text(r"norm\.weight", "norm"),
    Rule(r"(?:language_model\.)?lm_head\.weight", ("head",)),
)

ATTENTION = (
    in_layer(r"self_attn\.q_proj\.weight", "q"),
    in_layer(r"self_attn\.k_proj\.weight", "k"),
    in_layer(r"self_attn\.v_proj\.weight", "v"),
    in_layer(r"self_attn\.o_proj\.weight", "o"),
)

LAYER_NORMS = (in_layer(r"(?:self_attn\.)?[a-z0-9_]*norm[a-z0-9_]*\.weight", "norm"),)

MLP = swiglu("mlp")

LLAMA_LIKE = (*ENDS, *ATTENTION, *MLP, *LAYER_NORMS)

# The router is a plain matrix named like a gate; some models add a bias that balances the experts' load.
ROUTER = (in_layer(r"mlp\.gate\.(?:weight|e_score_correction_bias)", "router"),)

SHARED_EXPERTS = swiglu(r"mlp\.shared_experts")

# Layers past the last one that predict further tokens; `eh_proj`, which joins two states, stays as it is.
NEXT_TOKEN_LAYERS = (
    in_layer(r"embed_tokens\.weight", "embed"),
    in_layer(r"shared_head\.head\.weight", "head"),
    in_layer(r"shared_head\.norm\.weight", "norm"),
)

TOWERS = (
    Rule(r"(?:model\.)?(?:vision_tower|embed_vision|multi_modal_projector)\..+", ("vision",)),
    Rule(r"(?:model\.)?(?:audio_tower|embed_audio)\..+", ("audio",)),
)
