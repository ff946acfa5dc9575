"""What is done with a finished model: text out."""
