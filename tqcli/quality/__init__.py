"""How far a compressed model is from its original: KL divergence, top-1 agreement, perplexity."""
