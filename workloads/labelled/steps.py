"""A torch_npu program that runs steps of one kind and says of each what it was.

    python -m workloads.labelled.steps CONFIGURATION --steps N

prints ``ready``, waits for a line on stdin, runs N steps, prints each as a line of JSON, then ``end``, and
waits for another line. What a step was is known from how it was made, not from what anybody saw of it:

    {"stream": handle, "t0": ns, "t1": ns, "phase": "decode", "tokens": 4, "batch": 4, "kv_len": 17}

`t0` and `t1` are CLOCK_MONOTONIC before the step's first call and after its result was on the host; `kv_len`
is absent where no call of the step names it.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from flexnpu.console.numbers import COUNT, Whole
from flexnpu.console.program import SETTINGS, Program
from workloads.labelled.names import CONFIGURATIONS, TOGETHER, UNSEEN, UNWARMED
from workloads.labelled.serving import ROOM, Model

# torch_npu adds to torch what its types do not know.
torch: Any = importlib.import_module("torch")
npu: Any = importlib.import_module("torch_npu").npu
Tensor = Any

BATCHES = (1, 2, 3, 4, 8, 16, 32, 64)
GRAPH_BATCHES = (1, 2, 4, 8, 16, 32, 64)
VOCABULARY = 1000

#: One step: what it was, and the call that runs it until its result is on the host.
Work = Iterator[tuple[dict[str, Any], Callable[[], object]]]


class Journal:
    """Runs steps and writes down what they were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lines: list[str] = []

    def run(self, work: Work, share: int) -> None:
        """`share` steps of `work` on this thread's current stream, and what it takes to end a request."""
        for done, (label, call) in enumerate(work):
            t0 = time.monotonic_ns()
            call()
            t1 = time.monotonic_ns()
            line = {"stream": npu.current_stream().npu_stream, "t0": t0, "t1": t1, **label}
            with self._lock:
                self.lines.append(json.dumps(line))
            if done + 1 >= share:
                return


def _ids(*shape: int) -> Tensor:
    return torch.randint(3, VOCABULARY - 1, shape)


def _label(phase: str, tokens: int, batch: int, kv_len: int | None = None) -> dict[str, Any]:
    label: dict[str, Any] = {"phase": phase, "tokens": tokens, "batch": batch}
    if kv_len is not None:
        label["kv_len"] = kv_len
    return label


# -- models from the library that nobody here wrote ----------------------------------------------------------


def _llama(attention: str) -> Any:
    import transformers as hf

    made: Any = hf.LlamaConfig
    config = made(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        attn_implementation=attention,
    )
    net: Any = hf.LlamaForCausalLM(config)
    return net.eval().npu()


def _unseen(family: str) -> Any:
    """Architectures of `names.UNSEEN`."""
    import transformers as hf

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
    }
    made: Any
    if family == "gpt2":
        made = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4))
    elif family == "opt":
        made = hf.OPTForCausalLM(
            hf.OPTConfig(**sizes, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=2048)
        )
    elif family == "mixtral":
        made = hf.MixtralForCausalLM(hf.MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4))
    elif family == "gemma2":
        made = hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes, num_key_value_heads=2, head_dim=16))
    elif family == "qwen3":
        made = hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16))
    elif family == "neox":
        made = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes))
    elif family == "phi":
        made = hf.PhiForCausalLM(hf.PhiConfig(**sizes))
    else:
        raise ValueError(family)
    return made.eval().npu()


def requests(model: Any, dice: random.Random) -> Work:
    """Prompts of 1 to 64 sequences and 2 to 96 tokens each, then decode with a growing cache."""
    while True:
        batch, length = dice.choice(BATCHES), dice.randint(2, 96)
        state: dict[str, Any] = {}

        def forward(ids: Tensor, state: dict[str, Any] = state) -> None:
            out = model(ids.npu(), past_key_values=state.get("cache"), use_cache=True)
            state["cache"] = out.past_key_values
            state["next"] = out.logits[:, -1:].argmax(-1).cpu()

        prompt = _ids(batch, length)
        yield _label("prefill", batch * length, batch), lambda f=forward, p=prompt: f(p)  # type: ignore[misc]
        for _ in range(dice.randint(4, 12)):
            yield _label("decode", batch, batch), lambda f=forward, s=state: f(s["next"])  # type: ignore[misc]


def replays(model: Any, dice: random.Random, *, on_device: bool) -> Work:
    """Eager prompts, and decode steps replayed from graphs captured a batch size each.

    `on_device`: the chosen tokens are the next step's input without passing through the host.
    """
    from transformers import StaticCache

    room = 128
    graphs: dict[int, tuple[Any, Tensor, Tensor, Any]] = {}
    for batch in GRAPH_BATCHES:
        ids = torch.zeros(batch, 1, dtype=torch.int64).npu()
        position = torch.zeros(1, dtype=torch.int64).npu()
        mask = torch.zeros(batch, 1, 1, room).npu()
        cache: Any = StaticCache(config=model.config, max_cache_len=room)

        def step(
            ids: Tensor = ids,
            position: Tensor = position,
            mask: Tensor = mask,
            cache: Any = cache,
        ) -> Tensor:
            out = model(
                ids,
                attention_mask=mask,
                position_ids=position[None],
                past_key_values=cache,
                cache_position=position,
                use_cache=True,
            )
            chosen: Tensor = out.logits[:, -1:].argmax(-1)
            if on_device:
                ids.copy_(chosen)
            return chosen

        step()
        npu.synchronize()
        graph = npu.NPUGraph()
        with npu.graph(graph):
            chosen = step()
        graphs[batch] = graph, ids, chosen, cache

    def prefill(prompt: Tensor) -> None:
        model(prompt.npu()).logits[:, -1:].argmax(-1).cpu()
        graphs[len(prompt)][3].reset()  # the cache counts its sequence's tokens, also when replayed

    def decode(batch: int) -> None:
        graph, ids, chosen, _ = graphs[batch]
        if not on_device:
            ids.copy_(_ids(batch, 1))
        graph.replay()
        chosen.cpu()

    while True:
        batch, length = dice.choice(GRAPH_BATCHES), dice.randint(2, 96)
        prompt = _ids(batch, length)
        yield _label("prefill", batch * length, batch), lambda p=prompt: prefill(p)  # type: ignore[misc]
        for _ in range(dice.randint(8, 20)):
            yield _label("decode", batch, batch), lambda b=batch: decode(b)  # type: ignore[misc]


# -- as serving engines run them -----------------------------------------------------------------------------


class Engine:
    """A continuous-batching engine's model and its sequences' pages."""

    def __init__(self, layers: int = 2, *, gathers: bool = False) -> None:
        self.model = Model(layers, max(BATCHES), gathers=gathers)

    def run(self, queries: list[int], keys: list[int]) -> None:
        """One step: `queries[i]` new tokens of sequence i, which then has `keys[i]` keys."""
        ends = [sum(queries[: i + 1]) for i in range(len(queries))]
        ids = _ids(ends[-1]).npu()
        self.model(ids, self.model.tables[: len(queries)], ends, keys).cpu()


def decodes(engine: Engine, dice: random.Random) -> Work:
    """Decode of 1 to 64 sequences of different lengths."""
    while True:
        batch = dice.choice(BATCHES)
        keys = [dice.randint(2, ROOM) for _ in range(batch)]
        yield _label("decode", batch, batch, max(keys)), lambda k=keys: engine.run([1] * len(k), k)  # type: ignore[misc]


def chunks(engine: Engine, dice: random.Random) -> Work:
    """Prompts in chunks of at most 32 tokens, then some decode."""
    while True:
        length, done = dice.randint(20, ROOM - 12), 0
        while done < length:
            # The engine never leaves a chunk of one token over: such a step is a decode step to the device.
            size = min(32, length - done)
            if length - done - size == 1:
                size -= 1
            done += size
            yield (
                _label("prefill", size, 1, done),
                lambda s=size, d=done: engine.run([s], [d]),  # type: ignore[misc]
            )
        for extra in range(1, dice.randint(2, 8)):
            yield _label("decode", 1, 1, length + extra), lambda k=length + extra: engine.run([1], [k])  # type: ignore[misc]


def mixtures(engine: Engine, dice: random.Random) -> Work:
    """Sequences that decode, with chunks of prompts among them."""
    while True:
        decoding, prompts = dice.randint(1, 31), dice.randint(1, 3)
        queries = [1] * decoding + [dice.randint(2, 30) for _ in range(prompts)]
        if dice.random() < 0.3:
            dice.shuffle(queries)  # engines put decode first, or do not sort
        keys = [query + dice.randint(0, ROOM - 31) for query in queries]
        yield (
            _label("mixed", sum(queries), len(queries), max(keys)),
            lambda q=queries, k=keys: engine.run(q, k),  # type: ignore[misc]
        )


def anything(engine: Engine, dice: random.Random) -> Work:
    """Steps of every phase in turn."""
    sources = [decodes(engine, dice), chunks(engine, dice), mixtures(engine, dice)]
    while True:
        yield next(dice.choice(sources))


def task_updates(engine: Engine, dice: random.Random) -> Work:
    """Decode in whole graphs whose attention takes each step's lengths by task updates on a second stream."""
    model = engine.model
    graphs: dict[int, tuple[Any, Tensor, Tensor, Tensor]] = {}
    for batch in GRAPH_BATCHES:
        ids = torch.zeros(batch, dtype=torch.int64).npu()
        tables = model.tables[:batch].clone()
        ends, keys = list(range(1, batch + 1)), [5] * batch
        model(ids, tables, ends, keys)
        npu.synchronize()
        graph = npu.NPUGraph()
        with npu.graph(graph, auto_dispatch_capture=True):
            chosen = model(ids, tables, ends, keys)
        graphs[batch] = graph, ids, chosen, tables  # the graph names their memory

    def step(keys: list[int]) -> None:
        graph, ids, chosen, _ = graphs[len(keys)]
        ids.copy_(_ids(len(keys)))
        graph.replay()
        graph.update([{"actual_seq_lengths_kv": keys}])
        chosen.cpu()

    while True:
        batch = dice.choice(GRAPH_BATCHES)
        for _ in range(dice.randint(4, 12)):
            keys = [dice.randint(2, ROOM) for _ in range(batch)]
            yield _label("decode", batch, batch, max(keys)), lambda k=keys: step(k)  # type: ignore[misc]


def pieces(engine: Engine, dice: random.Random) -> Work:
    """As engines that capture all but attention: eager embedding and attention, graphs between them."""
    model = engine.model
    captured: dict[int, list[tuple[Any, tuple[Tensor, ...]]]] = {}
    inputs: dict[int, tuple[Tensor, ...]] = {}
    sizes = (1, 2, 4, 8, 16, 32, 64)
    for size in sizes:
        x = torch.zeros(size, 64, dtype=torch.float16).npu()
        made = torch.zeros(size, 64, dtype=torch.float16).npu()
        inputs[size] = x, made

        def first(x: Tensor = x) -> tuple[Tensor, ...]:
            return model.before_attention(x, 0)

        def last(x: Tensor = x, made: Tensor = made) -> tuple[Tensor, ...]:
            return (model.choose(model.after_attention(x, made, 0)),)

        captured[size] = []
        for piece in (first, last):
            piece()
            npu.synchronize()
            graph = npu.NPUGraph()
            with npu.graph(graph):
                result = piece()
            captured[size].append((graph, result))

    def step(queries: list[int], keys: list[int]) -> None:
        count = sum(queries)
        x, made = inputs[count]
        (first, parts), (last, chosen) = captured[count]
        x.copy_(model.embed(_ids(count).npu()))
        first.replay()
        ends = [sum(queries[: i + 1]) for i in range(len(queries))]
        made.copy_(model.attention(parts[0], 0, model.tables[: len(queries)], ends, keys).reshape(-1, 64))
        last.replay()
        chosen[0].cpu()

    while True:
        if dice.random() < 0.3:
            length = dice.choice(sizes[1:])
            yield _label("prefill", length, 1, length), lambda n=length: step([n], [n])  # type: ignore[misc]
        else:
            batch = dice.choice(sizes)
            keys = [dice.randint(2, ROOM) for _ in range(batch)]
            yield _label("decode", batch, batch, max(keys)), lambda k=keys: step([1] * len(k), k)  # type: ignore[misc]


# -- running -------------------------------------------------------------------------------------------------


def _source(name: str, dice: random.Random) -> Work:
    if name in ("eager", "sdpa"):
        return requests(_llama(name), dice)
    if name in ("graph", "graph-seen"):
        return replays(_llama("eager"), dice, on_device=name == "graph-seen")
    if name in UNSEEN:
        return requests(_unseen(name), dice)
    sources = {
        "decode": decodes,
        "chunked": chunks,
        "mixed": mixtures,
        "task-updates": task_updates,
        "pieces": pieces,
        "gather": anything,
    }
    return sources[name](Engine(1 if name == "pieces" else 2, gathers=name == "gather"), dice)


@click.command("steps", cls=Program, context_settings=SETTINGS)
@click.argument("configuration", type=click.Choice(CONFIGURATIONS))
@click.option("--steps", type=COUNT, default=200, show_default=True)
@click.option("--seed", type=Whole(0, 2**32), default=1, show_default=True)
def main(configuration: str, steps: int, seed: int) -> None:
    """Runs one configuration and prints a label for each step."""
    torch.manual_seed(seed)
    npu.set_device(0)
    names = TOGETHER.get(configuration, (configuration,))
    with torch.no_grad():
        sources = [_source(name, random.Random(seed + i)) for i, name in enumerate(names)]
        warm = Journal()
        for source in sources:
            if configuration not in UNWARMED:
                warm.run(source, 3)  # also captures the graphs
        npu.synchronize()
        print("ready", flush=True)
        sys.stdin.readline()
        journal = Journal()
        share = steps // len(sources)
        if len(sources) == 1:
            journal.run(sources[0], share)
        else:

            def on_own_stream(source: Work) -> None:
                npu.set_device(0)
                with torch.no_grad(), npu.stream(npu.Stream()):
                    journal.run(source, share)

            threads = [threading.Thread(target=on_own_stream, args=(source,)) for source in sources]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    print("\n".join(journal.lines))
    print("end", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
