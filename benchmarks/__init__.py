"""What measures the claims: each module prints one JSON object and compares within one run."""
