"""What model servers say: content, usage, prompts and echoes, in the dialects that are known."""

from __future__ import annotations

import pytest
from streams import PROMPT, run_events, run_stream

from probes.requests.dialects import content_of


def test_echoed_prompt_in_the_first_chunk() -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}]}
    assert run_stream(body, f"<user>{PROMPT}<assistant>", "Once", " upon").chunks == [3, 4]


def test_a_first_chunk_with_more_than_the_echo_is_content() -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}]}
    assert run_stream(body, f"{PROMPT} by the sea, long ago and far", "x").chunks == [2, 3]


def test_echo_on_request_may_come_in_pieces() -> None:
    body = {"prompt": "ab cd", "echo": True}
    assert run_stream(body, "ab", " cd", "ab", "x").chunks == [4, 5]


def test_a_short_answer_that_begins_like_the_prompt_is_content() -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    assert run_stream(body, "Hi", " there").chunks == [2, 3]


def test_an_echo_may_repeat_the_users_last_message() -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Well,"}]}
    assert run_stream(body, PROMPT, "Once", " upon").chunks == [3, 4]


def test_an_echo_with_new_text_behind_it_is_content() -> None:
    # vLLM with "echo" puts the prompt before the first token's text.
    assert run_stream({"prompt": PROMPT, "echo": True}, f"{PROMPT} by", " the").chunks == [2, 3]


# Tokens.


def test_the_servers_usage_says_the_tokens() -> None:
    deltas = [{"choices": [{"delta": {"content": "a b"}}], "usage": None}]
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}
    x = run_events(*deltas, usage)
    assert (x.prompt_tokens, x.completion_tokens, x.chunks) == (7, 2, [2])


def test_continuous_usage_is_the_last_one() -> None:
    x = run_events(
        *(
            {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 3, "completion_tokens": n}}
            for n in (1, 2, 3)
        )
    )
    assert (x.prompt_tokens, x.completion_tokens, len(x.chunks)) == (3, 3, 3)


@pytest.mark.parametrize(
    ("last", "tokens"),
    [
        ({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}, (5, 1)),
        ({"type": "message_delta", "usage": {"output_tokens": 9}}, (None, 9)),
        (
            {"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 6}}},
            (5, 6),
        ),
        ({"token": {"text": "x"}, "details": {"generated_tokens": 4}}, (None, 4)),
        ({"done": True, "prompt_eval_count": 5, "eval_count": 8}, (5, 8)),
        ({"stop": True, "tokens_evaluated": 5, "tokens_predicted": 8}, (5, 8)),
        ({"usage": {"prompt_tokens": "7", "completion_tokens": -1}}, (None, None)),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 2**40}}, (None, None)),
        ({"usage": [1]}, (None, None)),
    ],
)
def test_usage_of_other_servers(last: object, tokens: tuple[int | None, int | None]) -> None:
    x = run_events(last)
    assert (x.prompt_tokens, x.completion_tokens) == tokens


def test_sglangs_own_stream_repeats_the_text() -> None:
    x = run_events(
        *(
            {"text": text, "meta_info": {"prompt_tokens": 4, "completion_tokens": n}}
            for n, text in enumerate(("", "On", "Once", "Once", "Once upon"), 0)
        )
    )
    assert (len(x.chunks), x.prompt_tokens, x.completion_tokens) == (3, 4, 4)


def test_json_lines() -> None:
    events = [{"message": {"content": "a"}}, {"message": {"thinking": "hm"}}, {"done": True, "eval_count": 2}]
    x = run_events(*events, kind=b"application/x-ndjson")
    assert (len(x.chunks), x.completion_tokens) == (2, 2)


# Holes.


@pytest.mark.parametrize(
    ("body", "chars"),
    [
        (
            {
                "messages": [
                    {"content": "abc"},
                    {"content": [{"type": "text", "text": "de"}, {"type": "image"}]},
                ]
            },
            5,
        ),
        ({"system": "ab", "messages": [{"content": "c"}]}, 3),
        ({"input": "abcd"}, 4),
        ({"inputs": "abcd"}, 4),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [1, 2, 3]}, None),
        ([], None),
        ("x", None),
        ({}, None),
    ],
)
def test_prompt_chars(body: object, chars: int | None) -> None:
    assert run_stream(body).prompt_chars == chars


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"choices": [{"text": "a"}]}, "a"),
        ({"choices": [{"delta": {"reasoning_content": "r"}}]}, "r"),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}, "f{}"),
        ({"choices": [{"delta": {"role": "assistant"}}]}, ""),
        ({"choices": [{"delta": {"content": None}}, None, {"delta": 3}]}, ""),
        ({"type": "response.output_text.delta", "delta": "a"}, "a"),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}, "a"),
        ({"type": "message_start", "message": {"content": []}}, ""),
        ({"token": {"text": "a", "special": False}}, "a"),
        ({"token": {"text": "</s>", "special": True}}, ""),
        ({"message": {"content": "a"}, "done": False}, "a"),
        ({"response": "a"}, "a"),
        ({"content": "a", "stop": False}, "a"),
        ([], ""),
        (None, ""),
        ({"choices": 1}, ""),
    ],
)
def test_content_of(obj: object, text: str) -> None:
    assert content_of(obj) == text
