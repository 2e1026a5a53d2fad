"""What the agent reads of the machine: its processors, memory, disks and network, its processes and its GPUs."""
