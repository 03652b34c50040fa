"""What a config says of a model: its modules, names and stacks, without a weight."""
