"""Servers that play the part of Apple in tests and in `make try`."""
