"""Sockets: the listener, the connections, and plain HTTP on the same port."""
