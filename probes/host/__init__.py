"""What the host knows of processes: which there are, what they are, what they wait for."""
