"""The requests that the demo sends: slices of the traces, first requests, and those that measure the host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flexnpu.cli.demo.chain import Chain
from flexnpu.cli.demo.plan import Plan, ServerPlan
from flexnpu.cli.demo.processes import DemoError
from workloads.replay import TRACES, Arrival, PromptMaker, Record, Target, load_arrivals
from workloads.replay import replay as send_all


class Loads:
    """Sends requests to the servers of a chain."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    @property
    def _plan(self) -> Plan:
        return self._chain.plan

    def arrivals(self, plan: ServerPlan, seconds: float) -> list[Arrival]:
        """The slice of a server's trace that is replayed in ``seconds``; its first request comes at once."""
        found = load_arrivals(TRACES[plan.trace], 2 * seconds, plan.scaling, plan.skip_s)
        first_s = found[0].at_s
        shifted = [replace(arrival, at_s=arrival.at_s - first_s) for arrival in found]
        return [arrival for arrival in shifted if arrival.at_s < seconds]

    def target(self, name: str, arrivals: Sequence[Arrival], max_in_flight: int) -> Target:
        """A server with requests for it; prompts of one number are the same in every run."""
        server = self._chain.servers[name]
        maker = PromptMaker(server.model_dir)
        prompts = [maker.make(arrival.prompt_tokens) for arrival in arrivals]
        return Target(name, server.url, arrivals, prompts, max_in_flight)

    def replay(self, plans: Sequence[ServerPlan], seconds: float) -> list[Record]:
        """Replay the servers' traces side by side."""
        targets = [self.target(plan.name, self.arrivals(plan, seconds), plan.max_in_flight) for plan in plans]
        return self.send(targets, seconds)

    def in_turn(self, requests: Mapping[str, Sequence[tuple[int, int]]], within_s: float) -> list[Record]:
        """Send each server its requests (tokens of the prompt, of the answer) one after the other, all
        servers at the same time.

        Nothing is sent after ``within_s`` seconds. Raises DemoError if one fails.
        """
        targets = [
            self.target(name, [Arrival(0.0, prompt, answer) for prompt, answer in wanted], 1)
            for name, wanted in requests.items()
        ]
        records = self.send(targets, within_s)
        failed = [f"{record.server}: {record.error}" for record in records if not record.ok]
        if failed or not records:
            raise DemoError(f"a request failed: {failed[0] if failed else 'none was sent'}")
        return records

    def warm_up(self) -> list[Record]:
        """First uses of each shape (model code, daemon, cost estimates) are not what is to be compared."""
        shapes: dict[str, list[tuple[int, int]]] = {}
        for plan in self._plan.servers:
            longest = max(arrival.prompt_tokens for arrival in self.arrivals(plan, self._plan.phase_s))
            shapes[plan.name] = [(24, 8), (longest, 8)]
        return self.in_turn(shapes, 60.0)

    def send(self, targets: Sequence[Target], window_s: float) -> list[Record]:
        """Send the targets' requests for `window_s` s; answers under way get the plan's `drain_s` more."""
        return asyncio.run(send_all(targets, window_s, self._plan.drain_s))
