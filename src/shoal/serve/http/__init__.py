"""A model behind HTTP: OpenAI's interface, and what encoders tell."""
