"""The commands: the only place that puts the rooms together."""
