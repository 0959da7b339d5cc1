"""Controllers: they sense (steps from the probes' feed, lanes from the daemon), decide, and act (gate
settings with a lease). One file a policy, in `policies`.
"""
