"""Models as pure mathematics: tensors in, tensors out. No processes, no recipes, no files."""
