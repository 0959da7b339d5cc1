"""The kinds of labelled steps, for who must not import torch."""

#: What runs on threads and streams of their own, at once.
TOGETHER = {"threads": ("sdpa", "decode", "chunked")}

#: Models that the classifier's authors did not look at while they wrote it.
UNSEEN = ("gpt2", "opt", "mixtral", "gemma2", "qwen3", "neox", "phi")

#: What starts cold, so that a tracer sees its graphs captured. Nothing else tells their sizes.
UNWARMED = ("graph-seen",)

CONFIGURATIONS = (
    "eager",
    "sdpa",
    "graph",
    "graph-seen",
    "task-updates",
    "decode",
    "chunked",
    "mixed",
    "pieces",
    "gather",
    *TOGETHER,
    *UNSEEN,
)

#: Iterations as vLLM-Ascend issues them (`workloads.labelled.engine`).
ENGINES = ("eager", "pieces", "full", "eager-sync", "pieces-sync", "full-sync")
