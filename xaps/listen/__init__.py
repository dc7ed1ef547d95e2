"""Ports, UNIX sockets and their TLS: opened and closed; it never reads what arrives there."""
