"""A server under everything at once: a hypothesis state machine loads, publishes, evicts, breaks, cancels and asks."""
