"""Unmodified vLLM-Ascend, as people run it: the venv that `make vllm` makes, and a server of a model."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: What `make vllm` runs.
_MAKER = Path(__file__).resolve().parents[1] / "scripts" / "vllm"

#: Nothing is fetched or reported. tvm-ffi, which the grammars use, would compile an addon at the first start.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}

#: How the engine launches a model: one operator after the other, a graph a layer, a graph a decode step.
MODES: dict[str, list[str]] = {
    "eager": ["--enforce-eager"],
    "piecewise": ["--compilation-config", '{"cudagraph_mode": "PIECEWISE"}'],
    "full": ["--compilation-config", '{"cudagraph_mode": "FULL_DECODE_ONLY"}'],
}


#: Drafts of tokens, taken from the text before.
NGRAM = (
    "--speculative-config",
    '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}',
)


class VllmError(Exception):
    """vLLM is not there or does not serve; the message names the remedy, or what the server wrote last."""


def find() -> Path:
    """The finished venv of the versions that this checkout names: scripts/vllm knows both. Raises VllmError
    where there is none."""
    command = [sys.executable, str(_MAKER), "where"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise VllmError(asked.stderr.strip().removeprefix("vllm: "))
    return Path(asked.stdout.rstrip("\n"))


def command(
    venv: Path, model: Path, port: int, mode: str, *options: str, max_tokens: int = 512, blocks: int = 64
) -> list[str]:
    """`vllm serve` of a small model: little memory, contexts of `max_tokens`, up to eight requests at once,
    `blocks` of 128 tokens in the cache."""
    return [
        str(venv / "bin" / "vllm"),
        "serve",
        str(model),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"),
        *("--dtype", "float16", "--max-model-len", str(max_tokens), "--block-size", "128"),
        *("--max-num-seqs", "8", "--gpu-memory-utilization", "0.1"),
        *("--num-gpu-blocks-override", str(blocks)),
        *MODES[mode],
        *options,
    ]


def completion(prompt: Sequence[int], tokens: int, **options: Any) -> dict[str, Any]:
    """The body of a request for token ids after `prompt`, greedily unless the options say otherwise."""
    return {
        "model": "model",
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **options,
    }


class Server:
    """A server that runs until the block ends; its output is in `log`."""

    def __init__(
        self,
        arguments: Sequence[str],
        port: int,
        environment: Mapping[str, str],
        log: Path,
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.log = log
        self._output: IO[bytes] = log.open("wb")
        # A group of its own: the engine is a child that outlives a killed server.
        self.process = subprocess.Popen(
            [*prefix, *arguments],
            env={**environment, **ENVIRONMENT},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def processes(self) -> list[int]:
        """The pids of all that live of it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == self.process.pid:
                    found.append(int(entry.name))
        return found

    def engine(self) -> int:
        """The process that launches the model's operators. Raises VllmError when there is none."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise VllmError(f"no engine among the server's processes:\n{self.last_words()}")

    def last_words(self, size: int = 4000) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-size:]

    def wait(self, seconds: float = 900, path: str = "/health") -> None:
        """Returns when it serves `path`. Raises VllmError when it ends before, or not in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise VllmError(f"vLLM ended with {self.process.returncode}:\n{self.last_words()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.25)
        raise VllmError(f"vLLM did not serve within {seconds:.0f} s:\n{self.last_words()}")

    def complete(self, prompt: Sequence[int], tokens: int, **options: Any) -> list[int]:
        """The token ids that follow `prompt`, greedily unless the options say otherwise."""
        return self.choices(prompt, tokens, **options)[0]

    def choices(self, prompt: Sequence[int], tokens: int, **options: Any) -> list[list[int]]:
        """The token ids of each answer to `prompt`; the option `n` says how many there are."""
        content = json.loads(self.ask("/v1/completions", completion(prompt, tokens, **options)))
        answers = sorted(content["choices"], key=lambda choice: int(choice["index"]))
        return [[int(token) for token in choice["token_ids"]] for choice in answers]

    def metric(self, name: str) -> float:
        """The sum of a metric's samples. Raises VllmError when it has none."""
        samples = [
            float(line.rsplit(" ", 1)[1])
            for line in self.ask("/metrics").splitlines()
            if line.startswith((name + "{", name + " "))
        ]
        if not samples:
            raise VllmError(f"no metric {name}")
        return sum(samples)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """What the server answers; a body makes it a POST. Raises VllmError for an error."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            raise VllmError(f"{error.code}: {error.read().decode(errors='replace')[:2000]}") from None
        except OSError as error:
            raise VllmError(f"{error}:\n{self.last_words()}") from None

    def stop(self) -> None:
        """Ends the server and all that it started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                print(f"vLLM did not end: killed; {self.log}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        self._output.close()
