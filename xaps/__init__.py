"""Push mail for iPhones and iPads on self-hosted IMAP servers."""

__version__ = "2.1.0"
