"""From probe hits to steps: the tracer, records, phases, learned layouts, windows of detail."""
