"""The memory-mapped, append-only log between the training process and the agent."""
