"""``make siege``: hostile peers of every kind, while an honest phone and an honest IMAP server keep
account of what they are owed. It knows the daemon by its doors alone."""
