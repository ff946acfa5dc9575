"""Labelled examples: from files in whatever format to rows that a labelled task learns from."""
