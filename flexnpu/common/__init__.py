"""Definitions that several rooms share. A room may use this one whatever else it may use."""
