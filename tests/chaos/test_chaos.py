"""Clients, daemon, tracer, collector and controller are killed and stopped at random moments under load.

After each, everything that `World.check` says must hold: nobody hangs, the accounts balance, who was not
harmed prints bit for bit what a direct run prints, who lost the daemon is told by an ACL error. At the end
nothing is left.

FLEXNPU_CHAOS_S      how long to go on, in seconds (60; 3600 for an hour)
FLEXNPU_CHAOS_SEED   the seed of what is done to whom; a failure names it
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from world import Actor, Broken, World, is_stopped, wait_until

DURATION_S = float(os.environ.get("FLEXNPU_CHAOS_S", "60"))
SEED = int(os.environ.get("FLEXNPU_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
WORKERS = 3


class Chaos:
    """Chooses what is done to whom, from a seed."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)

    def choose(self) -> tuple[str, Callable[[], None]]:
        world, any_of = self.world, self.random.choice
        worker, helper = any_of(world.workers), any_of(world.helpers)
        actions: list[tuple[int, str, Callable[[], None]]] = [
            (4, "kill a client", lambda: self.kill(worker)),
            (4, "stop a client", lambda: self.stop(worker)),
            (3, "stop the daemon", lambda: self.stop(world.daemon)),
            (1, "kill the daemon", self.kill_daemon),
            (2, f"kill {helper.name}", lambda: self.kill(helper)),
            (2, f"stop {helper.name}", lambda: self.stop(helper)),
            (1, "stop a client and the daemon", lambda: self.stop(worker, world.daemon)),
            (1, "kill a client while the daemon is stopped", lambda: self.kill_beside_stopped(worker)),
        ]
        weights = [weight for weight, _, _ in actions]
        _, name, action = self.random.choices(actions, weights)[0]
        return name, action

    def pause(self) -> None:
        time.sleep(self.random.uniform(0.05, 1.5))

    def kill(self, actor: Actor) -> None:
        actor.send(signal.SIGKILL)
        actor.wait()
        self.world.start_actor(actor)

    def kill_daemon(self) -> None:
        self.world.daemon.send(signal.SIGKILL)
        self.world.daemon.wait()
        self.pause()
        self.world.start_daemon()

    def stop(self, *actors: Actor) -> None:
        for actor in actors:
            actor.send(signal.SIGSTOP)
        for actor in actors:
            pid = actor.pid
            wait_until(f"{actor.name} is stopped", lambda pid=pid: is_stopped(pid))  # type: ignore[misc]
        self.pause()
        for actor in self.random.sample(actors, len(actors)):
            actor.send(signal.SIGCONT)

    def kill_beside_stopped(self, actor: Actor) -> None:
        daemon = self.world.daemon
        daemon.send(signal.SIGSTOP)
        wait_until("the daemon is stopped", lambda: is_stopped(daemon.pid))
        self.kill(actor)
        self.pause()
        daemon.send(signal.SIGCONT)


@pytest.mark.e2e
@pytest.mark.timeout(DURATION_S + 1200)
def test_chaos(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    world = World(tmp_path, WORKERS, traced=os.geteuid() == 0)
    chaos = Chaos(world, SEED)
    deadline = time.monotonic() + DURATION_S
    done: list[str] = []
    try:
        world.start()
        world.check()
        while time.monotonic() < deadline:
            name, action = chaos.choose()
            done.append(name)
            world.counts.note(name)
            action()
            chaos.pause()
            world.check()
        world.end()
        left = [str(path) for path in world.run_dir.rglob("*") if path.is_socket()]
        if left:
            raise Broken(f"sockets left in the run directory: {left}")
    except Exception as error:
        world.kill_all()
        error.add_note(f"FLEXNPU_CHAOS_SEED={SEED}; done until then: {done}")
        raise
    finally:
        report = {"seed": SEED, "seconds": DURATION_S, **vars(world.counts)}
        record_property("chaos", report)
        print(json.dumps(report))
