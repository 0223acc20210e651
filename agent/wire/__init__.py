"""Bytes to tensors and back, nothing else."""
