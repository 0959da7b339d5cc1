"""The dispatch gate: lanes, cost estimates, admission.

A pure state machine in C++ (gate.hpp); `_gate` is its Python binding, for tests and simulations.
"""
