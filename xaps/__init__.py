"""Push mail for iPhones and iPads on self-hosted IMAP servers."""

__version__ = "1.0.0"
