"""Which phones want to hear about which mailboxes, on disk; it never decides when one is pushed."""
