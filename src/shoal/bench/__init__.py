"""Measuring training over networks: hosts, what runs on them, and what is told about it."""
