"""What the daemon may push with, and where it comes from."""
