"""The command ``xapsctl``: a client of the control socket, without a reactor."""
