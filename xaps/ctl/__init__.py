"""The command ``xapsctl``: a client of the control socket; it never loads the reactor."""
