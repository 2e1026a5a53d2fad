"""Records to finished spans and points. Pure: no clock, no thread, no I/O."""
