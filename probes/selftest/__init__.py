"""Proof that tracing works on this machine."""
