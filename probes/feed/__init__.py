"""What the probes publish: events, the socket that carries them, recordings."""
