"""eBPF tracing of AscendCL programs: steps, phases and wire latency of processes that run unchanged."""
