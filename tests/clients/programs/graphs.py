"""Prints, as JSON, digests of what torch.npu.NPUGraph computes, and whether eager operators give the same.

Every way to run it prints the same.
"""

import hashlib
import json
import os
import sys
import tempfile

import torch
import torch_npu
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

DEVICE = "npu:0"


def digest(*tensors: torch.Tensor) -> str:
    data = [t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]
    return hashlib.sha256(b"".join(data)).hexdigest()[:16]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def layers(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    for weight in weights:
        x = torch.nn.functional.silu(x @ weight) + x
    return x


def changed_inputs(replays: int) -> dict[str, object]:
    """One graph, replayed with other inputs in the same memory."""
    weights = [randn(64, 64, seed=i) * 0.1 for i in range(4)]
    x = randn(8, 64, seed=10)
    layers(x, weights)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = layers(x, weights)
    equal, out = 0, []
    for i in range(replays):
        new = randn(8, 64, seed=20 + i % 7)
        x.copy_(new)
        graph.replay()
        got = y.cpu()
        equal += torch.equal(got, layers(new, weights).cpu())
        out.append(got)
    return {"equal": equal, "digest": digest(*out)}


def shared_pool() -> dict[str, object]:
    """Graphs of several batch sizes in one memory pool, replayed in turn."""
    weights = [randn(64, 64, seed=i) * 0.1 for i in range(3)]
    pool = torch.npu.graph_pool_handle()
    graphs = {}
    for batch in (8, 4, 2, 1):
        x = torch.zeros(batch, 64, device=DEVICE)
        layers(x, weights)
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph, pool=pool):
            y = layers(x, weights)
        graphs[batch] = (graph, x, y)
    equal, out = 0, []
    for i in range(12):
        batch = (1, 8, 2, 4)[i % 4]
        graph, x, y = graphs[batch]
        new = randn(batch, 64, seed=i)
        x.copy_(new)
        graph.replay()
        got = y.cpu()
        equal += torch.equal(got, layers(new, weights).cpu())
        out.append(got)
    graphs[8][0].reset()  # the others live on
    graphs[4][1].fill_(0.5)
    graphs[4][0].replay()
    return {"equal": equal, "digest": digest(*out, graphs[4][2])}


def branches() -> dict[str, object]:
    """Two streams in one graph, and accumulation across replays."""
    x, total = randn(32, 32, seed=1), torch.zeros(32, 32, device=DEVICE)
    side = torch.npu.Stream()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        here = torch.npu.current_stream()
        side.wait_stream(here)
        with torch.npu.stream(side):
            right = x * 3
        left = x * 2
        here.wait_stream(side)
        total += left + right
    for _ in range(50):
        graph.replay()
    return {"close": torch.allclose(total.cpu(), 250 * x.cpu(), rtol=1e-4), "digest": digest(total)}


def decode(steps: int) -> dict[str, object]:
    """Greedy decode of a small transformer with a static cache, one replay a token."""
    hidden, heads, vocab, room = 64, 4, 100, 64
    table = randn(vocab, hidden, seed=1)
    qkv, out = randn(hidden, 3 * hidden, seed=2) * 0.2, randn(hidden, hidden, seed=3) * 0.2
    up, down = randn(hidden, 2 * hidden, seed=4) * 0.2, randn(2 * hidden, hidden, seed=5) * 0.2
    positions = randn(room, hidden, seed=6)
    keys, values = (torch.zeros(room, hidden, device=DEVICE) for _ in range(2))
    token, position = (torch.zeros(1, dtype=torch.int64, device=DEVICE) for _ in range(2))
    places = torch.arange(room, device=DEVICE)

    def step() -> torch.Tensor:
        x = table.index_select(0, token) + positions.index_select(0, position)
        q, k, v = (x @ qkv).split(hidden, dim=-1)
        keys.index_copy_(0, position, k)
        values.index_copy_(0, position, v)
        split = [t.view(-1, heads, hidden // heads).transpose(0, 1) for t in (q, keys, values)]
        scores = split[0] @ split[1].transpose(-1, -2) / (hidden // heads) ** 0.5
        scores = scores.masked_fill(places > position, float("-inf"))
        x = x + (scores.softmax(-1) @ split[2]).transpose(0, 1).reshape(1, hidden) @ out
        x = x + torch.nn.functional.silu(x @ up) @ down
        chosen = (x @ table.t()).argmax(-1)
        token.copy_(chosen)
        position.add_(1)
        return chosen

    def start() -> None:
        token.fill_(7)
        position.zero_()
        keys.zero_()
        values.zero_()

    start()
    eager = [int(step().item()) for _ in range(steps)]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        chosen = step()
    start()
    replayed = []
    for _ in range(steps):
        graph.replay()
        replayed.append(int(chosen.item()))
    return {"equal": eager == replayed, "tokens": replayed}


def qwen2(steps: int) -> dict[str, object]:
    """A step of an unmodified Qwen2 with a static cache: one replay a token."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, attn_implementation="eager",
    )  # fmt: skip
    net = Qwen2ForCausalLM(config).to(torch.float16).npu().eval()
    batch, room = 2, 64
    prompt = torch.randint(0, 1000, (5, batch, 1), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    cache = StaticCache(config=config, max_cache_len=room)
    ids = torch.zeros(batch, 1, dtype=torch.int64, device=DEVICE)
    position = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    places = torch.arange(room, device=DEVICE)
    shown = torch.zeros((), dtype=torch.float16, device=DEVICE)
    hidden = torch.full_like(shown, torch.finfo(torch.float16).min)

    def step() -> torch.Tensor:
        mask = torch.where(places[None, None, None, :] <= position, shown, hidden).expand(batch, 1, 1, room)
        positions = position[None].expand(batch, 1)
        out = net(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        chosen = out.logits[:, -1].argmax(-1, keepdim=True)
        ids.copy_(chosen)
        position.add_(1)
        return chosen

    def start() -> None:
        cache.reset()
        position.zero_()
        for token in prompt:
            ids.copy_(token)
            step()

    with torch.no_grad():
        start()
        eager = [step().flatten().tolist() for _ in range(steps)]
        start()
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            chosen = step()
        start()
        replayed = []
        for _ in range(steps):
            graph.replay()
            replayed.append(chosen.flatten().tolist())
    return {"equal": eager == replayed, "tokens": replayed}


def task_group() -> dict[str, object]:
    """An operator of a graph takes other arguments, by hand."""
    a, b, c = (randn(16, 16, seed=i) for i in range(3))
    result = torch.empty(16, 16, device=DEVICE)
    update = torch.npu.Stream()
    graph = torch.npu.NPUGraph()
    torch.mm(a, b, out=result)
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch.mm(a, b, out=result)
        handle = torch.npu.graph_task_group_end(stream)
        shifted = result + 1
    graph.replay()
    first = shifted.cpu()
    with torch.npu.stream(update):
        torch.npu.graph_task_update_begin(update, handle)
        torch.mm(a, c, out=result)
        torch.npu.graph_task_update_end(update)
    update.synchronize()
    graph.replay()
    second = shifted.cpu()
    return {
        "before": torch.equal(first, (a @ b + 1).cpu()),
        "after": torch.equal(second, (a @ c + 1).cpu()),
        "digest": digest(first, second),
    }


def attention_updates(steps: int) -> dict[str, object]:
    """As vLLM-Ascend decodes: the graph waits until the attention of each layer has its sequence lengths."""
    batch, heads, size, room, depth = 2, 4, 64, 64, 3
    dtype = torch.float16
    q = randn(batch, heads, 1, size, seed=1).to(dtype)
    shape = (batch, heads, room, size)
    caches = [
        (randn(*shape, seed=2 * i + 5).to(dtype), randn(*shape, seed=2 * i + 6).to(dtype))
        for i in range(depth)
    ]

    def attend(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        for k, v in caches:
            x = torch_npu.npu_fused_infer_attention_score(
                x, k, v, actual_seq_lengths_kv=lengths, num_heads=heads, input_layout="BNSD", scale=size**-0.5
            )[0]
        return x

    attend(q, [1, 1])
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        y = attend(q, [1, 1])
    equal, out = 0, []
    for step in range(steps):
        lengths = [5 + step, 9 + 2 * step]
        graph.replay()
        graph.update([{"actual_seq_lengths_kv": lengths}])
        torch.npu.synchronize()
        got = y.cpu()
        equal += torch.equal(got, attend(q, lengths).cpu())
        out.append(got)
    return {"equal": equal, "different": len({digest(t) for t in out}), "digest": digest(*out)}


def graphed_callable() -> dict[str, object]:
    """Forward and backward of a module as two graphs."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).to(DEVICE)
    x = randn(8, 16, seed=3).requires_grad_()
    reference = net(x)
    reference.sum().backward()
    expected = [p.grad.clone() for p in net.parameters()] + [x.grad.clone()]
    for p in [*net.parameters(), x]:
        p.grad = None
    graphed = torch.npu.make_graphed_callables(net, (torch.zeros(8, 16, device=DEVICE).requires_grad_(),))
    y = graphed(x)
    y.sum().backward()
    got = [p.grad for p in net.parameters()] + [x.grad]
    close = [torch.allclose(a.cpu(), b.cpu(), atol=1e-5) for a, b in zip(got, expected, strict=True)]
    return {"forward": torch.equal(y.cpu(), reference.cpu()), "backward": close, "digest": digest(y, *got)}


def misuse() -> dict[str, object]:
    """A capture that waits for its own result fails, and eager work goes on."""
    x = torch.ones(4, device=DEVICE)
    graph = torch.npu.NPUGraph()
    inside = after = ""
    try:
        with torch.npu.graph(graph):
            y = x + 1
            try:
                torch.npu.current_stream().synchronize()
            except RuntimeError as error:
                inside = "107027" if "107027" in str(error) else str(error)[:200]
    except RuntimeError as error:
        after = "507903" if "507903" in str(error) else str(error)[:200]
    del graph
    y = x + 2
    return {"inside": inside, "after": after, "eager": y.sum().item()}


def dump() -> dict[str, object]:
    """What a graph holds."""
    x = torch.ones(4, device=DEVICE)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        for _ in range(5):
            x.mul_(2)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "graph.json")
        graph.debug_dump(path)
        with open(path) as file:
            events = json.load(file)
        aligned = os.path.exists(os.path.join(folder, "graph.aligned.json")) or len(os.listdir(folder)) > 1
    return {"names": [e["name"] for e in events if e["ph"] == "X"], "aligned": aligned}


def main() -> None:
    replays = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    result = {
        "changed inputs": changed_inputs(replays),
        "shared pool": shared_pool(),
        "branches": branches(),
        "decode": decode(24),
        "qwen2": qwen2(16),
        "task group": task_group(),
        "attention updates": attention_updates(10),
        "graphed callable": graphed_callable(),
        "misuse": misuse(),
        "dump": dump(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
