"""Libraries and modules of CANN that work in the program's own process alone."""
