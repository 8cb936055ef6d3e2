"""What a server costs: agents to measure with, a load client, probes, and their report."""
