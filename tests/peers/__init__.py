"""Real IMAP servers and HTTP/2 servers, started and ended by the tests."""
