"""Virtual time: engines, hosts, the gate and the device as one model of discrete events."""
