"""Modules of aten operators: a handler for each kind, the layouts of what passes between them, and what falls back."""
