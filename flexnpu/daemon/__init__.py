"""flexnpud: one process a device. Sessions, object tables and the dispatcher are native (`_plane`); the
Python around them configures, serves the control socket and cleans up.
"""
