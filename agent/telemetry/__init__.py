"""What the agent counts and measures."""
