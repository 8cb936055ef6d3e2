"""Agents: what a step runs, the built-in ones, and what they are given."""
