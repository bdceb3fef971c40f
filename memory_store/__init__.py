"""Versioned snapshots, MIPS indexes, shards, coordinator: the memory that a network reads."""
