"""Which functions are probed, what each probe is for, and what it is expected to cost.

A plan is a choice of `SITES`. Those of the plan ``default`` are sentinels: a step hits each once or a few
times. ``detail`` adds every operator launch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import flexnpu
from probes.placing import declarations

Plan = Literal["default", "detail"]
"""``default``: sentinels, and a short rotating window of detail; ``detail``: every launch, all the time."""


class Cost(StrEnum):
    """How often a site is hit: what its probes cost, up to the cost of one hit."""

    STEP = "step"
    """Once or a few times a step."""
    COPY = "copy"
    """A few times a step, more where a program copies much."""
    LAYER = "layer"
    """Once an attention layer; only the first of a step does more than return."""
    LAUNCH = "launch"
    """Once an operator: hundreds of times a step."""
    TENSOR = "tensor"
    """Once a tensor or array: more often than launches."""


class Role(StrEnum):
    """What a site tells. Shed in the reverse order: what cuts steps goes last."""

    BOUNDARY = "boundary"
    """Where steps begin and end."""
    SHAPE = "shape"
    """The shape of a step: its embedding's first call."""
    COPY = "copy"
    """Copies between host and device."""
    ATTENTION = "attention"
    """Sequence lengths of a step."""
    COUNT = "count"
    """How many operators were launched."""
    OBJECT = "object"
    """Shapes of all objects, for libraries whose objects cannot be read."""
    CLIENT = "client"
    """FlexNPU's client tells of its steps itself."""
    TRANSFER = "transfer"
    """Memory that moves between engines."""
    OPERATOR = "operator"
    """And of each operator, by name."""


@dataclass(frozen=True)
class Site:
    """A function to probe: the BPF program at its entry, the one at its return if there is one."""

    symbol: str
    entry: str
    on_return: str | None = None
    cost_class: Cost = Cost.STEP
    role: Role = Role.BOUNDARY
    semaphore: str | None = None
    """A word in the library's data that the kernel raises while the probe is there."""
    cookie: int = 0
    """What its program is told of the site, where the kernel has cookies."""
    session: str | None = None
    """The program that does for both, where the kernel has uprobe sessions."""


_FAMILIES: tuple[tuple[str, int | None, int | None], ...] = (
    # Attention operators, all versions: which of their integer arrays, from 0, are lengths of queries and KV.
    ("aclnnFusedInferAttentionScore", 0, 1),
    ("aclnnPromptFlashAttention", 0, 1),
    ("aclnnIncreFlashAttention", None, 0),
    ("aclnnFlashAttentionVarLenScore", 1, 2),
    ("aclnnFlashAttentionScore", None, None),
)
_OPERATORS = Path(flexnpu.__file__).parent / "api" / "aclnn.tsv"


def attention_arguments(table: str) -> tuple[tuple[str, int, int, int], ...]:
    """The attention operators of an API table (`flexnpu/api/aclnn.tsv`): name, and the numbers, from 0, of
    the arguments that are query lengths, KV lengths and the name of the layout; 0: it has none.

    Numbers are of arguments of integer class, for floating-point ones travel in other registers.
    """
    found = []
    for line in table.splitlines():
        if "Attention" not in line:
            continue
        name, kinds = line.split("\t")[:2]
        kinds = kinds.replace("d", "").replace("f", "")
        for prefix, queries, keys in _FAMILIES:
            if not re.fullmatch(rf"{prefix}(V\d+)?", name):
                continue
            arrays = [at for at, kind in enumerate(kinds) if kind == "I"]
            numbers = [
                arrays[which] if which is not None and which < len(arrays) else 0 for which in (queries, keys)
            ]
            found.append((name, numbers[0], numbers[1], max(kinds.find("s"), 0)))
    return tuple(found)


SITES = (
    Site("aclCreateTensor", "on_create_tensor", None, Cost.TENSOR, Role.OBJECT),
    Site(
        "aclnnEmbeddingGetWorkspaceSize",
        "on_embedding_first",
        "on_embedding_first_return",
        Cost.STEP,
        Role.SHAPE,
    ),
    *(
        Site(
            f"{name}GetWorkspaceSize",
            "on_attention_first",
            None,
            Cost.LAYER,
            Role.ATTENTION,
            cookie=lengths | keys << 8 | layout << 16,
        )
        for name, lengths, keys, layout in attention_arguments(_OPERATORS.read_text())
    ),
    Site("aclrtLaunchKernelWithHostArgs", "on_kernel_launch", None, Cost.LAUNCH, Role.COUNT),
    Site("flexnpu_step", "on_client_step", None, Cost.STEP, Role.CLIENT, "flexnpu_step_semaphore"),
    Site(
        "flexnpu_step_begin", "on_client_step", None, Cost.STEP, Role.CLIENT, "flexnpu_step_begin_semaphore"
    ),
    Site(
        "flexnpu_operator",
        "on_client_operator",
        None,
        Cost.LAUNCH,
        Role.OPERATOR,
        "flexnpu_operator_semaphore",
    ),
    Site("aclCreateIntArray", "on_create_int_array", None, Cost.TENSOR, Role.OBJECT),
    Site("aclmdlRIExecuteAsync", "on_graph"),
    Site("aclmdlRICaptureBegin", "on_capture_begin"),
    Site("aclmdlRICaptureEnd", "on_capture_end", "on_capture_end_return"),
    Site("aclrtRecordEvent", "on_record_event"),
    Site("aclrtStreamWaitEvent", "on_wait_event"),
    Site("aclrtStreamWaitEventWithTimeout", "on_wait_event"),
    Site("aclrtSynchronizeEvent", "on_sync_event", "on_sync_return"),
    Site("aclrtSynchronizeEventWithTimeout", "on_sync_event", "on_sync_return"),
    Site("aclrtSynchronizeStream", "on_sync_stream", "on_sync_return"),
    Site("aclrtSynchronizeStreamWithTimeout", "on_sync_stream", "on_sync_return"),
    Site("aclrtSynchronizeDevice", "on_sync_device", "on_sync_return"),
    Site("aclrtSynchronizeDeviceWithTimeout", "on_sync_device", "on_sync_return"),
    Site("aclrtMemcpy", "on_copy", "on_copy_return", Cost.COPY, Role.COPY, session="on_copy_session"),
    Site("aclrtMemcpyAsync", "on_copy_async", None, Cost.COPY, Role.COPY),
    Site("aclnnEmbedding", "on_embedding_second"),
    Site(
        "_ZN4adxl10AdxlEngine12TransferSyncERKN2ge12AscendStringENS_10TransferOpE"
        "RKSt6vectorINS_14TransferOpDescESaIS7_EEi",
        "on_transfer",
        "on_transfer_return",
        Cost.STEP,
        Role.TRANSFER,
    ),
)
"""What may be probed, in the order of placing: what shows a shape before what opens a step.

A process need not define all of them; without any of `FUNNELS` there is nothing to trace.
"""

CLIENT = "flexnpu_step"
"""The probe point of FlexNPU's client. A process that has it is probed at points of the client alone."""

CLIENT_BEGIN = "flexnpu_step_begin"
"""Where the client tells of steps that open; probed only for who wants to know."""

FUNNELS = frozenset({"aclrtLaunchKernelWithHostArgs", CLIENT})
"""Functions through which everything passes: every operator launch of CANN (and the emulated CANN), every
step of FlexNPU's client. A process that maps one uses an NPU."""

HITS = tuple(
    name.removeprefix("HIT_").lower() for name in declarations.of_steps().enumerators("hit") if name != "HITS"
)
"""Names of the counters of hits, in the order of the enum in `bpf/records.h`."""

HIT_OF = {
    "on_embedding_first": "embedding_first",
    "on_embedding_first_return": "embedding_return",
    "on_embedding_second": "embedding",
    "on_graph": "graph",
    "on_capture_begin": "capture",
    "on_capture_end": "capture",
    "on_capture_end_return": "capture",
    "on_sync_stream": "sync",
    "on_sync_device": "sync",
    "on_sync_event": "sync",
    "on_record_event": "event",
    "on_wait_event": "event",
    "on_sync_return": "sync_return",
    "on_copy": "copy",
    "on_copy_return": "copy_return",
    "on_copy_session": "copy",
    "on_copy_async": "copy_async",
    "on_attention_first": "attention",
    "on_kernel_launch": "launch",
    "on_operator": "operator",
    "on_create_tensor": "tensor",
    "on_create_int_array": "array",
    "on_client_step": "client",
    "on_client_operator": "operator",
    "on_transfer": "transfer",
    "on_transfer_return": "transfer",
}
"""Which of `HITS` a program counts."""

RETURN_HIT_OF = {"on_copy_session": "copy_return"}
"""Which one a session's program counts at the return."""


def sites(plan: Plan, *, client: bool, objects: bool, begins: bool) -> tuple[Site, ...]:
    """The sites that are probed all the time.

    `client`: in a process that has FlexNPU's client. `objects`: shapes must be seen at the objects' making,
    because their layout is not known. `begins`: steps that open are told, too.
    """
    if client:
        told = {Role.CLIENT, Role.TRANSFER} | ({Role.OPERATOR} if plan == "detail" else set())
        return tuple(site for site in SITES if site.role in told and (begins or site.symbol != CLIENT_BEGIN))
    left_out = {Role.CLIENT, Role.OPERATOR}
    if plan == "default":
        left_out.add(Role.COUNT)
    if not objects:
        left_out.add(Role.OBJECT)
    return tuple(site for site in SITES if site.role not in left_out)
