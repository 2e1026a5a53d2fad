"""The parts of a run in the training process; none of them knows of the agent."""
