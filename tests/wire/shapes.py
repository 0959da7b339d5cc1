"""Answers of model servers, as their APIs shape them, and what is true of each, for conformance tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

MB = 1_000_000


@dataclass(frozen=True)
class Shape:
    """An answer in pieces, each written by itself, and what must be told of it."""

    path: str
    pieces: list[str]
    chunks: int
    tokens: int | None
    first: int | None
    """Index of the first piece with content."""
    kind: str = "text/event-stream"
    complete: bool = True
    error: str | None = None
    encoding: str = ""
    ask: dict[str, object] = field(default_factory=dict)


def sse(*events: object, names: bool = False) -> list[str]:
    lines = []
    for one in events:
        name = f"event: {one['type']}\n" if names and isinstance(one, dict) else ""
        lines.append(
            one if isinstance(one, str) else f"{name}data: {json.dumps(one, ensure_ascii=False)}\n\n"
        )
    return lines


def chat(content: str = "", index: int = 0, **delta: object) -> dict[str, object]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": {"content": content, **delta}, "finish_reason": None}],
    }


DONE = "data: [DONE]\n\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}}
ROLE = chat(role="assistant")
CALL = {"index": 0, "function": {"name": "look", "arguments": ""}}
CHAT = sse(ROLE, chat("Once"), chat(" upon"), chat(" é \r\n5\r\n"), DONE)

SHAPES: dict[str, Shape] = {
    "chat": Shape("/v1/chat/completions", CHAT, 3, 3, 1),
    "completions": Shape(
        "/v1/completions", sse(*({"choices": [{"index": 0, "text": t}]} for t in "abcd"), DONE), 4, 4, 0
    ),
    "responses": Shape(
        "/v1/responses",
        sse(
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_text.delta", "delta": "a"},
            {"type": "response.output_text.delta", "delta": "b"},
            {
                "type": "response.completed",
                "response": {"text": "x" * 90_000, "usage": {"input_tokens": 3, "output_tokens": 9}},
            },
            names=True,
        ),
        2, 9, 1,
    ),
    "messages": Shape(
        "/v1/messages",
        sse(
            {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 6}},
            {"type": "message_stop"},
            names=True,
        ),
        2, 6, 1,
    ),
    "tgi": Shape(
        "/generate_stream",
        sse(
            *({"token": {"id": i, "text": t, "special": False}} for i, t in enumerate("ab")),
            {"token": {"id": 2, "text": "</s>", "special": True}, "details": {"generated_tokens": 3}},
        ),
        2, 3, 0,
    ),
    "triton": Shape(
        "/v2/models/m/generate_stream", sse(*({"model_name": "m", "text_output": t} for t in "abc")), 3, 3, 0
    ),
    "jsonlines": Shape(
        "/api/chat",
        [
            json.dumps({"message": {"role": "assistant", "content": "a"}, "done": False}) + "\n",
            json.dumps({"message": {"role": "assistant", "content": "b"}, "done": False}) + "\n",
            json.dumps({"done": True, "prompt_eval_count": 4, "eval_count": 5}) + "\n",
        ],
        2, 5, 0, kind="application/x-ndjson",
    ),
    "whole": Shape(
        "/v1/chat/completions",
        [json.dumps({"choices": [{"message": {"content": "abc"}}], "usage": {"completion_tokens": 3}})],
        0, 3, None, kind="application/json",
    ),
    "json-stream": Shape(
        "/v1/chat/completions", sse(ROLE, chat("a"), chat("b"), DONE), 2, 2, 1, kind="application/json"
    ),
    "reasoning": Shape(
        "/v1/chat/completions", sse(ROLE, chat(reasoning_content="so"), chat("a"), DONE), 2, 2, 1
    ),
    "tools": Shape("/v1/chat/completions", sse(ROLE, chat(tool_calls=[CALL]), chat("a"), DONE), 2, 2, 1),
    "usage": Shape("/v1/chat/completions", sse(ROLE, chat("a"), chat("b"), USAGE, DONE), 2, 7, 1),
    "token-ids": Shape(
        "/v1/completions",
        sse(*({"choices": [{"text": t, "token_ids": ids}]} for t, ids in (("", [1]), ("é", [2, 3])))),
        2, 3, 0,
    ),
    "comments": Shape(
        "/v1/chat/completions", [": ping\n\n", *sse(ROLE), ": 5\r\n\r\n", *sse(chat("a"), DONE)], 1, 1, 3
    ),
    "error": Shape(
        "/v1/chat/completions", sse(ROLE, chat("a"), {"error": {"message": "out of memory"}}, DONE),
        1, 1, 1, error="event",
    ),
    "several": Shape(
        "/v1/chat/completions", sse(chat("a"), chat("b", 1), chat("c", 1), chat("d"), USAGE, DONE), 4, 7, 0
    ),
    "batched": Shape("/v1/chat/completions", [*sse(ROLE), "".join(sse(*[chat("t")] * 40)), DONE], 40, 40, 1),
    "gzip": Shape(
        "/v1/chat/completions", CHAT, 0, None, None, encoding="gzip", complete=False
    ),
}  # fmt: skip

WAYS = ("keep-alive", "pipelined", "http/1.0", "1 MB prompt", "chunked", "in pieces", "ipv6", "unix", "gone")
"""Ways to ask for the shape ``chat``."""


def body_of(shape: Shape, prompt: str = "hello there") -> bytes:
    return json.dumps(
        {"stream": True, "messages": [{"role": "user", "content": prompt}], **shape.ask}
    ).encode()
