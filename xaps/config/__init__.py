"""``xapsd.yaml`` to checked values; it never opens what they point to."""
