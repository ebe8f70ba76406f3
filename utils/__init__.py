"""Helpers that the five files import. Nothing in here is in the paper, and nothing in here imports
the five files."""
