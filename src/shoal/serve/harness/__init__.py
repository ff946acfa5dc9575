"""Tasks of `lm-eval` (EleutherAI's lm-evaluation-harness), run on Shoal's models."""
