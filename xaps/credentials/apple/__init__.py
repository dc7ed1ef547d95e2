"""Apple's certificate service: asked, understood, remembered; it never decides what is in use."""
