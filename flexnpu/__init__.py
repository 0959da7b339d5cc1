"""FlexNPU: transparent virtualization, tracing and control of Ascend NPUs for LLM serving."""

__version__ = "0.1.0"
