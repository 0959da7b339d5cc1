"""`flexnpu demo`: the whole chain on one machine, checked link by link."""
