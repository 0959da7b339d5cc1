"""How kernels of several streams share a device: a pure state machine in C++ (`device.hpp`)."""
