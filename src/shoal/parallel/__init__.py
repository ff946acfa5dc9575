"""How ranks divide the work and meet. Knows tensors, process groups and bytes, not language models."""
