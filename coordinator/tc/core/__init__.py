"""What the coordinator decides, as pure functions: no input or output, no clock, no dice of its own."""
