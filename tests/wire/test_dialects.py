"""What model servers say: content, usage, prompts and echoes, in the dialects that are known."""

from __future__ import annotations

import pytest
from streams import IN, LAST, OUT, PROMPT, SSE, Recorder, chunk, event, request, run_events, run_stream

from probes.requests.dialects import content_of, error_of
from probes.requests.exchange import MAX_BODY
from probes.requests.timing import timing


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


@pytest.mark.parametrize(
    ("last", "failure"),
    [
        # vLLM; SGLang; llama-server; TGI and Triton; Ollama; Anthropic; OpenAI responses.
        ({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}, "event"),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "event"),
        ({"error": {"code": 400, "message": "the request exceeds the context"}}, "event"),
        ({"error": "Request failed during generation", "error_type": "generation"}, "event"),
        ({"error": "llama runner process has terminated"}, "event"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "event"),
        ({"type": "response.failed", "response": {"status": "failed", "error": {"code": "x"}}}, "event"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]}, "finish"),
        ({"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]}, "finish"),
        ({"choices": [{"index": 0, "error": {"code": 502, "message": "provider"}}]}, "event"),
        ({"text": "", "meta_info": {"finish_reason": {"type": "abort", "message": "timeout"}}}, "finish"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, None),
        ({"choices": [{"index": 0, "delta": {"content": "error"}, "finish_reason": "length"}]}, None),
        ({"choices": [], "error": None}, None),
        ({"text": "x", "meta_info": {"finish_reason": None}}, None),
        ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, None),
        ([], None),
        ({"choices": [None, 3], "meta_info": 4, "delta": "error"}, None),
    ],
)
def test_errors_inside_a_stream(last: object, failure: str | None) -> None:
    assert error_of(last) == failure
    seen = run_events({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, last)
    assert (seen.error, seen.status, seen.complete) == (failure, 200, True)


@pytest.mark.parametrize(
    "lines",
    [
        b'error: {"code":500,"message":"slot unavailable","type":"server_error"}\n\n',  # llama-server
        b"event: error\ndata: not even JSON\n\n",
        b'event:error\r\ndata: {"message":"x"}\r\n\r\n',
        b"event: error\n\n",
    ],
)
def test_errors_by_the_events_name(lines: bytes) -> None:
    r = Recorder()
    r.put(IN, request({}))
    r.put(OUT, SSE)
    r.put(OUT, chunk(lines))
    r.put(OUT, chunk(event({"content": "a"})))
    r.put(OUT, LAST)
    (seen,) = r.done
    assert (seen.error, seen.complete, seen.chunks) == ("event", True, [3])


def test_a_stream_without_an_error_has_none() -> None:
    assert run_stream({}, "event: error", "error: no").error is None


@pytest.mark.parametrize(
    ("path", "body", "wants"),
    [
        ("/v1/chat/completions", {"messages": [], "stream": True}, True),
        ("/v1/chat/completions", {"messages": [], "stream": False}, False),
        ("/v1/chat/completions", {"messages": [{"content": '"stream": true'}]}, False),
        ("/generate_stream", {"inputs": "x"}, True),
        ("/api/chat", {"messages": []}, True),
        ("/api/chat", {"messages": [], "stream": False}, False),
    ],
)
def test_whether_a_stream_is_asked_for(path: str, body: object, wants: bool) -> None:
    r = Recorder()
    r.put(IN, request(body, path))
    assert r.stream.pending[0].wants_stream is wants


def test_whether_a_stream_is_asked_for_by_a_body_that_is_not_kept() -> None:
    text = "x" * (MAX_BODY + 10)
    quoted = {"messages": [{"content": text + '"stream": false'}], "stream": True}
    for body, wants in ((quoted, True), ({"prompt": text, "stream": False}, False), ({"prompt": text}, None)):
        r = Recorder()
        r.put(IN, request(body))
        assert r.stream.pending[0].wants_stream is wants
    whole = request({"stream": True, "prompt": "abc" * 100})
    r = Recorder()
    r.put(IN, whole[:-100], hole=100)
    assert r.stream.pending[0].wants_stream is True


def test_empty_chunks_with_token_ids_are_tokens() -> None:
    """vLLM holds text back while a character is not whole, but tells the tokens."""

    def part(text: str, ids: list[int]) -> dict[str, object]:
        return {"choices": [{"index": 0, "delta": {"content": text}, "token_ids": ids}]}

    role = {
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
        "prompt_token_ids": [1, 2],
    }
    x = run_events(role, part("", [5]), part("", [6]), part("é", [7, 8]), part("", []))
    assert (len(x.chunks), x.t_first, x.token_ids, x.complete) == (3, 3, 4, True)
    told = timing(1, "x", 3, x)
    assert (told.tokens, told.tokens_from) == (4, "usage")


def test_empty_chunks_whose_usage_grows_are_tokens_and_its_summary_is_none() -> None:
    def part(text: str, known: int) -> dict[str, object]:
        usage = {"prompt_tokens": 9, "completion_tokens": known}
        return {"choices": [{"index": 0, "delta": {"content": text}}], "usage": usage}

    end = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
    x = run_events(part("", 0), part("", 1), part("a", 2), part("", 2), part("b", 4), end)
    assert (len(x.chunks), x.t_first, x.completion_tokens, x.prompt_tokens) == (3, 3, 4, 9)


def test_triton_s_generate_stream() -> None:
    x = run_events(*({"model_name": "m", "text_output": text} for text in ("a", "", "b")))
    assert len(x.chunks) == 2


# What tells requests apart, and roles.

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def asked(body: object, more: str = "") -> Recorder:
    r = Recorder()
    r.put(IN, request(body, more=more))
    return r


def test_ids_of_a_request() -> None:
    seen = asked({}, f"x-request-id: abc\r\nTraceparent: {TRACEPARENT}\r\n").stream.pending[0]
    assert (seen.request_id, seen.traceparent) == ("abc", TRACEPARENT)
    for bad in (
        "x",
        TRACEPARENT[:-1],
        "ff" + TRACEPARENT[2:],
        TRACEPARENT.replace("b7ad6b7169203331", "0" * 16),
    ):
        seen = asked({}, f"X-Request-Id: {'a' * 129}\r\ntraceparent: {bad}\r\n").stream.pending[0]
        assert (seen.request_id, seen.traceparent) == ("", "")


@pytest.mark.parametrize("length", [0, MAX_BODY])
def test_the_role_of_an_instance(length: int) -> None:
    for transfer, role in (
        ({"do_remote_decode": True, "do_remote_prefill": False}, "prefill"),
        ({"do_remote_decode": False, "do_remote_prefill": True}, "decode"),
        ({"do_remote_decode": None}, None),
        ("x", None),
    ):
        body = {"prompt": "x" * length, "kv_transfer_params": transfer, "stream": True}
        assert asked(body).stream.pending[0].role == role
    quoted = {"prompt": '"do_remote_decode": true' + "x" * length}
    assert asked(quoted).stream.pending[0].role is None


def test_prompts_that_differ_have_other_digests() -> None:
    ids = ({"prompt": [1, 2]}, {"prompt": [12]})
    bodies = ({"prompt": "a"}, {"prompt": "b"}, {"messages": [{"content": "a"}, {"content": "b"}]}, *ids, {})
    digests = [asked(body).stream.pending[0].prompt_digest for body in bodies]
    assert len(set(digests)) == len(bodies)
    assert digests[-1] == b""


def test_the_id_of_an_answer() -> None:
    chunk_of = {"id": "cmpl-7", "choices": [{"delta": {"content": "a"}}]}
    assert run_events(chunk_of, chunk_of | {"id": "cmpl-8"}).answer_id == "cmpl-7"
    assert run_events({"type": "message_start", "message": {"id": "msg_1"}}).answer_id == "msg_1"
    assert run_events({"id": 7}, {"id": "a" * 129}).answer_id == ""


def test_a_stream_that_is_called_json_is_one() -> None:
    """Proxies of vLLM call it so."""
    x = run_events({"choices": [{"delta": {"content": "a"}}]}, kind=b"application/json")
    assert (len(x.chunks), x.streamed, x.complete) == (1, True, True)


def whole(answer: bytes, body: object, cut: int = 0) -> Recorder:
    r = asked(body)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
    r.put(OUT, head)
    if cut:
        r.put(OUT, answer[:cut])
    r.put(OUT, answer[cut:])
    return r


@pytest.mark.parametrize("cut", [0, 1, 31, 40])
def test_an_answer_in_one_piece_tells_its_id_and_usage(cut: int) -> None:
    usage = b'"usage": {"prompt_tokens": 7, "completion_tokens": 1}'
    answer = b'{"id": "cmpl-1", "choices": [{"text": "data: {}"}], ' + usage + b"}"
    (x,) = whole(answer, {"max_tokens": 1}, cut).done
    assert (x.answer_id, x.prompt_tokens, x.completion_tokens, x.chunks) == ("cmpl-1", 7, 1, [])
    # The whole answer is the first token.
    told = timing(1, "x", 3, x)
    assert (told.t_answer_ns, told.t_write_ns, told.t_first_ns) == (1, x.t_answer_write, None)
    assert x.one_token


def test_only_one_token_in_one_piece_is_the_whole_answer() -> None:
    for body in (
        {"max_tokens": 2},
        {"max_tokens": 1, "max_completion_tokens": 5},
        {},
        {"max_tokens": 1, "stream": True},
    ):
        assert not asked(body).stream.pending[0].one_token
    (x,) = whole(b"{}", {"max_tokens": 2}).done
    assert timing(1, "x", 3, x).t_write_ns is None


def test_an_answer_that_is_no_json_says_nothing() -> None:
    for answer in (b"{", b"[1]", b"\xff\xfe", b"[" * 5000, b'{"usage": 7, "id": []}'):
        (x,) = whole(answer, {}).done
        assert (x.answer_id, x.prompt_tokens, x.complete) == ("", None, True)
