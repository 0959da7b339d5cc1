"""What the tiny models cost this host, and what they cost the modelled chip."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flexnpu.cli.demo.chain import Chain
from flexnpu.cli.demo.host import DeviceCosts, HostCosts
from flexnpu.cli.demo.loads import Loads
from flexnpu.cli.demo.processes import DemoError
from flexnpu.common.quantiles import quantile

#: Of a host that does all of its work beside the device's.
_LEAST_MS = 0.1


def measure_host(chain: Chain, loads: Loads, device: DeviceCosts) -> HostCosts:
    """Chats, then long prompts, one after the other; what the device took of it is taken out.

    The device is given time, as it will have it: on one without any, each of a step's operators would be
    waited for, which costs a busy host a wake-up each.
    """
    how = chain.plan.measuring
    chain.clock.set(how.slowdown)
    loads.warm_up()
    chats = loads.in_turn({"chat": [how.chat_tokens] * how.chats}, how.longest_s)
    prompts = loads.in_turn({"flood": [(how.prompt_tokens, 1)] * how.prompts}, how.longest_s)

    def host_ms(values: Sequence[float | None], q: float, device_ms: float) -> float:
        found = quantile([value for value in values if value is not None], q)
        if found is None:
            raise DemoError("too few tokens came to measure this host")
        return max(found - how.slowdown * device_ms, _LEAST_MS)

    return HostCosts(
        # A client that is late reads several tokens at once: what they took together is what counts.
        token_ms=host_ms([record.tpot_ms for record in chats], 0.5, device.decode_ms),
        slow_token_ms=host_ms(
            [value for record in chats for value in record.intervals_ms], 0.95, device.decode_ms
        ),
        first_token_ms=host_ms([record.ttft_ms for record in chats], 0.5, device.first_token_ms),
        prompt_ms=host_ms([record.end_to_end_ms for record in prompts], 0.5, device.prompt_ms),
    )


def measure_device(chain: Chain, loads: Loads) -> DeviceCosts:
    """The chip's own times, from the device's busy time."""
    how = chain.plan.measuring
    chain.clock.set(how.device_slowdown)

    def busy_ms(name: str, prompt: int, answer: int) -> float:
        def once() -> float:
            before = _busy_us(chain)
            loads.in_turn({name: [(prompt, answer)]}, 60.0)
            return _busy_us(chain) - before

        # The shortest: an operator that the host interrupts while it computes takes longer than modelled.
        return min(once() for _ in range(2)) / 1e3 / how.device_slowdown

    prompt, answer = how.chat_tokens
    with_decode, without = busy_ms("chat", prompt, answer), busy_ms("chat", prompt, 1)
    costs = DeviceCosts(
        decode_ms=(with_decode - without) / (answer - 1),
        first_token_ms=without,
        prompt_ms=busy_ms("flood", how.prompt_tokens, 1),
    )
    if min(costs.decode_ms, costs.first_token_ms, costs.prompt_ms) <= 0:
        raise DemoError(f"the daemon counted no device time: {costs}")
    return costs


def load_average() -> str:
    """The load average of the last minute, and of how many processors, for people."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"


def _busy_us(chain: Chain) -> float:
    status = chain.status()
    if status is None or status.device_busy_us is None:
        raise DemoError("the daemon does not say how long the device was busy")
    return status.device_busy_us
