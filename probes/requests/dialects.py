"""What the APIs of model servers say in their bodies: generated text, token counts, prompts, echoes.

`content_of` knows the streams of OpenAI-compatible chat, completions and responses, Anthropic messages,
SGLang's own, Hugging Face TGI, Triton's generate, Ollama and llama.cpp. The role chunk has no content. An
echoed prompt has none either. An empty chunk with token ids, or with a usage that has grown, has tokens
whose text comes later: it counts as content (`bears_tokens`). With ``"echo": true`` in the request, all
chunks up to the prompt's end are taken as echo. Without it, a first chunk is an echo if it holds the
whole text of the last message, of the user's last message or of the prompt, and that text has
`ECHO_MIN_CHARS` or more. Tokens are what the server says in its usage statistics (`usage_of`). A stream
that began with status 200 can still fail; `error_of` sees it.

A new server dialect is a branch of `content_of` and, where it counts tokens or tells errors its own way, of
`usage_of` and `error_of`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

from probes.requests.exchange import MAX_ID, Exchange, Failure

MAX_DEPTH: Final = 12
"""Nesting of a request's message parts that is followed for its text."""
ECHO_MIN_CHARS: Final = 16
"""A shorter prompt is not looked for in the first chunk."""
_PROMPTS: Final = ("system", "messages", "prompt", "input", "inputs", "text")
_ROLE_FLAG: Final = re.compile(rb'(?<!\\)"do_remote_(decode|prefill)"\s*:\s*true')
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STREAM_FLAG: Final = re.compile(rb'(?<!\\)"stream"\s*:\s*(true|false)')


def is_echo(exchange: Exchange, text: str) -> bool:
    """Whether a chunk repeats the prompt (the module's docstring has the rule)."""
    if exchange.chunks:
        return False
    for prompt in exchange.prompts:
        if exchange.echo:
            if prompt.startswith(text, exchange.echoed):
                exchange.echoed += len(text)
                return True
        elif exchange.echoed == 0 and len(prompt) >= ECHO_MIN_CHARS and prompt in text:
            exchange.echoed = len(text)
            # More than a chat template's few words behind the prompt is new text.
            return len(text) - text.rfind(prompt) - len(prompt) <= ECHO_MIN_CHARS
    return False


def _texts(node: Any, depth: int = 0) -> list[str]:
    """The texts of a message's content: a string, or parts with a ``text``."""
    if isinstance(node, str):
        return [node]
    if depth > MAX_DEPTH:
        return []
    if isinstance(node, list):
        return [text for item in node for text in _texts(item, depth + 1)]
    if isinstance(node, dict):
        return _texts(node.get("text", node.get("content", [])), depth + 1)
    return []


def read_prompt(exchange: Exchange, body: bytes) -> None:
    """Read the prompt's length in characters, its last text, ``stream`` and ``echo``, from a request's JSON
    body."""
    try:
        request = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return
    if not isinstance(request, dict):
        return
    exchange.wants_stream = request.get("stream", _streams_unasked(exchange.path)) is True
    limits = [request[key] for key in ("max_tokens", "max_completion_tokens") if key in request]
    exchange.one_token = limits == [1] * len(limits) != [] and not exchange.wants_stream
    transfer = request.get("kv_transfer_params")
    if isinstance(transfer, dict):  # vLLM's, for prefill and decode in two instances
        if transfer.get("do_remote_decode") is True:
            exchange.role = "prefill"
        elif transfer.get("do_remote_prefill") is True:
            exchange.role = "decode"
    texts: list[str] = []
    asked = {key: request[key] for key in _PROMPTS if key in request}
    if asked:
        # Also of a prompt in token ids.
        exchange.prompt_digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
    for value in asked.values():
        texts += _texts(value)
    if not texts:
        return
    exchange.prompt_chars = sum(map(len, texts))
    exchange.echo = request.get("echo") is True
    last = [texts[-1]]
    messages = request.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            last += _texts(message)[-1:]
            break
    exchange.prompts = tuple(
        dict.fromkeys(text for text in (t if exchange.echo else t.strip() for t in last) if text)
    )


def read_stream_flag(exchange: Exchange, piece: bytes) -> None:
    """Look for ``"stream": true`` in a piece of a body that is not kept whole: what is quoted inside a JSON
    string has a backslash before its quotes."""
    found = _STREAM_FLAG.search(piece)
    if found is not None:
        exchange.wants_stream = found[1] == b"true"
    elif exchange.wants_stream is None and _streams_unasked(exchange.path):
        exchange.wants_stream = True


def read_role_flag(exchange: Exchange, piece: bytes) -> None:
    """Look for the role in a piece of a body that is not kept whole, as `read_stream_flag` does."""
    found = _ROLE_FLAG.search(piece)
    if found is not None:
        exchange.role = "prefill" if found[1] == b"decode" else "decode"


def read_ids(exchange: Exchange, fields: dict[bytes, bytes]) -> None:
    """Read what tells a request apart from the header fields of a request."""
    exchange.request_id = _id(fields.get(b"x-request-id", b"").decode("utf-8", "replace"))
    parent = fields.get(b"traceparent", b"").decode("ascii", "replace").lower()
    exchange.traceparent = (
        parent if _TRACEPARENT.fullmatch(parent[:55]) and not parent.startswith("ff") else ""
    )


def _id(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_ID else ""


def read_answer(exchange: Exchange, event: Any) -> None:
    """Read an answer's id and usage from one event of a stream, or from an answer in one piece."""
    if not isinstance(event, dict):
        return
    for of in (event, event.get("message"), event.get("response")):
        # Anthropic's message_start and OpenAI's response.created have it within.
        if not exchange.answer_id and isinstance(of, dict):
            exchange.answer_id = _id(of.get("id"))
    prompt, answer = usage_of(event)
    if prompt is not None:
        exchange.prompt_tokens = prompt
    if answer is not None:
        exchange.completion_tokens = answer


def _streams_unasked(path: str) -> bool:
    """Whether a server streams at `path` when the request does not say."""
    return path.endswith(("/generate_stream", "/api/chat", "/api/generate"))  # TGI and Triton; Ollama


def _filled(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        value = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
            return value
    return None


def usage_of(event: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer so far, as far as one event of a stream says them."""
    if not isinstance(event, dict):
        return None, None
    usage = event.get("usage") or event.get("meta_info") or event.get("details")
    for outer in ("message", "response"):  # Anthropic's message_start; OpenAI's response.completed
        inner = event.get(outer)
        if not usage and isinstance(inner, dict):
            usage = inner.get("usage")
    if isinstance(usage, dict):
        return (
            _count(usage, "prompt_tokens", "input_tokens"),
            _count(usage, "completion_tokens", "output_tokens", "generated_tokens"),
        )
    return (  # Ollama, llama.cpp
        _count(event, "prompt_eval_count", "tokens_evaluated"),
        _count(event, "eval_count", "tokens_predicted"),
    )


_FAILED: Final = frozenset({"error", "abort", "aborted", "failed", "server_error", "internal_error"})
"""Reasons to finish that are none of the model's or the request's."""


def error_of(event: Any) -> Failure | None:
    """How one event of a stream says that the request failed; None when it does not.

    ``event``: an error in place of an answer, as vLLM, SGLang, llama-server, TGI, Triton, Ollama and
    Anthropic send it (a filled ``error``), and OpenAI's responses (``response.failed``). ``finish``: the
    answer ends for a reason that is none of the model's (``finish_reason``: error, abort).
    """
    if not isinstance(event, dict):
        return None
    if (
        event.get("error")
        or event.get("type") in ("error", "response.failed")
        or event.get("object") == "error"
    ):
        return "event"
    choices, meta = event.get("choices"), event.get("meta_info")
    ends = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    for end in (*ends, meta, event.get("delta")):
        if not isinstance(end, dict):
            continue
        if end.get("error"):
            return "event"
        reason = end.get("finish_reason") or end.get("stop_reason")
        if isinstance(reason, dict):  # SGLang: {"type": "abort", "message": ..., "status_code": ...}
            reason = reason.get("type")
        if isinstance(reason, str) and reason.lower() in _FAILED:
            return "finish"
    return None


def token_ids_of(event: Any) -> int:
    """How many token ids one event of a stream has (vLLM's ``return_token_ids``)."""
    choices = event.get("choices") if isinstance(event, dict) else None
    found = 0
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict):
            delta = choice.get("delta")
            ids = choice.get("token_ids") or (delta.get("token_ids") if isinstance(delta, dict) else None)
            found += len(ids) if isinstance(ids, list) else 0
    return found


def bears_tokens(event: Any, known: int | None, ids: int) -> bool:
    """Whether an event without text has tokens in it: `ids` of them, or it counts more than the `known` ones.
    An answer's summary has no choices: it repeats what was sent."""
    if not isinstance(event, dict) or not isinstance(event.get("choices"), list) or not event["choices"]:
        return False
    told = usage_of(event)[1]
    return ids > 0 or (told is not None and told > (known or 0))


def content_of(event: Any) -> str:
    """The generated text in one event of a stream; empty if it has none.

    Reasoning text and tool calls count: a model generated them. A tool call's text is its arguments and name.
    """
    if not isinstance(event, dict):
        return ""
    choices = event.get("choices")
    if isinstance(choices, list):  # OpenAI chat and completions, vLLM, SGLang, transformers serve
        return "".join(_choice(choice) for choice in choices)
    delta = event.get("delta")
    if isinstance(delta, str):  # OpenAI responses: response.output_text.delta and its like
        return delta if str(event.get("type", "")).endswith(".delta") else ""
    if isinstance(delta, dict):  # Anthropic messages: content_block_delta
        return (
            _filled(delta.get("text")) + _filled(delta.get("thinking")) + _filled(delta.get("partial_json"))
        )
    token = event.get("token")
    if isinstance(token, dict):  # TGI
        return "" if token.get("special") is True else _filled(token.get("text"))
    if isinstance(event.get("meta_info"), dict):  # SGLang's /generate
        return _filled(event.get("text"))
    message = event.get("message")
    if isinstance(message, dict):  # Ollama chat
        return _filled(message.get("content")) + _filled(message.get("thinking"))
    # llama.cpp; Ollama's generate; Triton's
    return (
        _filled(event.get("content")) or _filled(event.get("response")) or _filled(event.get("text_output"))
    )


def _choice(choice: Any) -> str:
    if not isinstance(choice, dict):
        return ""
    text = _filled(choice.get("text"))
    delta = choice.get("delta")
    if isinstance(delta, dict):
        for key in ("content", "reasoning_content", "reasoning", "refusal"):
            text += _filled(delta.get(key))
        calls = delta.get("tool_calls")
        functions = (
            [call.get("function") for call in calls if isinstance(call, dict)]
            if isinstance(calls, list)
            else []
        )
        for function in (*functions, delta.get("function_call")):
            if isinstance(function, dict):
                text += _filled(function.get("name")) + _filled(function.get("arguments"))
    return text
