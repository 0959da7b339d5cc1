"""Programs that say of each of their steps what it was: the truth that a tracer is held against."""
