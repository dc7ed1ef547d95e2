"""Measurements of the running daemon, each against a stand-in for APNs; ``make bench``."""
