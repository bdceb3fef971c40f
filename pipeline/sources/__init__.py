"""Readers of raw triples and questions."""
