"""What the daemon may push with, where it comes from and how long it lasts; it never pushes."""
