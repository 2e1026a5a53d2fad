"""The training process: a run, its steps, and what it records; it knows of the agent only how to start one."""
