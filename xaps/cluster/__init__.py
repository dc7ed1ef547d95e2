"""Many nodes with one truth in PostgreSQL; a notice, a push and an answer never wait for it."""
