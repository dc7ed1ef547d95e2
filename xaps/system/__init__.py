"""The machine: files, log, systemd, OpenSSL, the clock; it never knows mail or Apple."""
