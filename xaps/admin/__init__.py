"""What an administrator asks of a daemon: status, metrics, ``--check``; it never acts by itself."""
