"""Which phones want to hear about which mailbox."""
