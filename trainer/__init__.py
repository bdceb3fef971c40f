"""Encoders, K-MIPS attention, loss, training loop, checkpoints, evaluation."""
