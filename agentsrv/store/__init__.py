"""Stores: the durable logs of tasks. `base` is the contract of all implementations."""
