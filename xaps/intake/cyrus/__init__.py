"""Cyrus IMAP's datagrams: received and understood; it never answers, Cyrus waits for no answer."""
