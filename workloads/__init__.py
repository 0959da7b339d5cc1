"""What the demo, the benchmarks and tests run, and the truth that what was seen of it is held against."""
