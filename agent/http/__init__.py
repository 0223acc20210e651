"""The Open Inference Protocol, health and metrics over HTTP, for callers on the box."""
