"""Which phones are pushed, when, and what an answer leads to; it never opens sockets or files."""
