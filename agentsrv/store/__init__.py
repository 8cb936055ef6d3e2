"""Stores: where the log is. One contract, one conformance suite, several implementations."""
