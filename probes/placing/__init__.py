"""Where probes go and what they cost: symbols, sites, plans, attaching, the budget."""
