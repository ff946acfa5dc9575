"""A live page of runs, read from their folders while they grow."""
