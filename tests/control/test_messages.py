"""The decoder of control messages takes anything and answers with a message or a `MessageError`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexnpu.control.messages import (
    MAX_REQUEST_BYTES,
    VERSION,
    ControllerInfo,
    ErrorReply,
    GateStatus,
    MessageError,
    Request,
    SetGate,
    StatusRequest,
    decode_reply,
    decode_request,
    encode,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
    max_leaves=20,
)
FIELDS = ["v", "type", "policy", "window_us", "decode_target_us", "overlap_slowdown", "lease_s", "lanes"]
VALID: dict[str, Any] = {"v": VERSION, "type": "set_gate", "policy": "protect-decode", "lease_s": 2.0}


@given(st.binary(max_size=300))
def test_any_bytes(line: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(MessageError):
            decode(line)


@given(json_values)
def test_any_json(value: Any) -> None:
    with pytest.raises(MessageError):
        decode_request(json.dumps(value).encode())


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
def test_a_valid_request_with_any_field_replaced(changes: dict[str, Any]) -> None:
    line = json.dumps({**VALID, **changes}).encode()
    request: Request | None = None
    with contextlib.suppress(MessageError):
        request = decode_request(line)
    assert request is None or isinstance(request, SetGate | StatusRequest)
    if isinstance(request, SetGate):
        assert 0 < request.window_us <= 1e6
        assert 0 < request.lease_s <= 60


@given(
    st.builds(
        SetGate,
        policy=st.sampled_from(["transparent", "protect-decode"]),
        window_us=st.floats(1, 1e6),
        decode_target_us=st.none() | st.floats(1, 1e9),
        overlap_slowdown=st.none() | st.floats(0.1, 100),
        lease_s=st.floats(0.1, 60),
        lanes=st.dictionaries(st.integers(0, 2**31), st.sampled_from(["unknown", "prefill", "decode"])),
    )
)
def test_requests_survive_the_wire(request: SetGate) -> None:
    line = encode(request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line) == request


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5, [1]])
def test_another_version_is_refused_by_name(version: object) -> None:
    with pytest.raises(MessageError, match="speaks 1") as caught:
        decode_request(json.dumps({**VALID, "v": version}).encode())
    assert caught.value.code == "version"


def test_what_version_1_grew_is_left_out_while_it_is_not_used() -> None:
    """A daemon of the first version 1 takes such a line; a daemon of today takes those of its clients."""
    first = (
        b'{"v":1,"type":"set_gate","policy":"protect-decode","window_us":300.0,"decode_target_us":null,'
        b'"overlap_slowdown":null,"lease_s":2.0,"lanes":{}}\n'
    )
    plain = SetGate(policy="protect-decode", lease_s=2)
    assert json.loads(encode(plain)) == json.loads(first)
    assert decode_request(first) == plain
    named = SetGate(
        policy="protect-decode",
        lease_s=2,
        controller=ControllerInfo(instance="a", counts={"steps": 1}),
        take_over=True,
        keep=True,
        max_hold_us=40_000,
        decode_idle_us=80_000,
    )
    assert decode_request(encode(named)) == named


@pytest.mark.parametrize("field", ["max_hold_us", "decode_idle_us"])
@pytest.mark.parametrize("value", [0, -1, 1e8, "nan"])
def test_the_gates_times_are_bounded(field: str, value: object) -> None:
    with pytest.raises(MessageError, match=field):
        decode_request(json.dumps({**VALID, field: value}).encode())


@pytest.mark.parametrize("instance", ["", "x" * 65, "a b", "\x1b[2J"])
def test_an_instance_is_a_plain_word(instance: str) -> None:
    line = json.dumps({**VALID, "controller": {"instance": instance}}).encode()
    with pytest.raises(MessageError, match="instance"):
        decode_request(line)


def test_too_long_and_too_deep() -> None:
    with pytest.raises(MessageError) as caught:
        decode_request(b" " * (MAX_REQUEST_BYTES + 1))
    assert caught.value.code == "too-long"
    with pytest.raises(MessageError):
        decode_request(b"[" * MAX_REQUEST_BYTES)


def test_a_request_may_not_carry_what_the_daemon_would_ignore() -> None:
    with pytest.raises(MessageError, match="windows_us"):
        decode_request(json.dumps({**VALID, "windows_us": 5}).encode())


def test_a_reply_may_grow() -> None:
    reply = ErrorReply(code="failed", message="x")
    grown = json.loads(encode(reply)) | {"later": 1}
    assert decode_reply(json.dumps(grown).encode()) == reply
    with pytest.raises(MessageError):
        decode_reply(encode(StatusRequest()))


def test_gate_status_round_trip() -> None:
    status = GateStatus(
        policy="transparent",
        window_us=300,
        decode_target_us=None,
        overlap_slowdown=1,
        lease_left_s=0,
        expired_leases=0,
    )
    assert decode_reply(encode(status)) == status
