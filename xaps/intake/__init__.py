"""How IMAP servers reach the daemon: bytes to model values and back."""
