"""The commands of `flexnpu-probe`, one a module; each has a click command named `command`."""
