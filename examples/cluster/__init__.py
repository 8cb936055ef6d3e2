"""Nodes that share one store, with docker compose (``compose.yaml``) or without (``local``)."""
