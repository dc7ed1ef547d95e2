"""How IMAP servers reach the daemon: bytes to values and back; it never knows APNs or the disk."""
