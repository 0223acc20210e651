"""The agent and a real broker under faults by a fixed seed: nothing may be lost, nothing answered wrongly."""
