"""Tiny language models with random weights, made offline, for servers that nobody here wrote.

The weights mean nothing; the computation is a real Llama's, Qwen2's, Qwen3's or OPT's. Two properties make
the text of such a model usable as a measuring instrument:

- every vocabulary entry is printable ASCII, so each decoded token is at once a piece of text, and a server
  that streams by text sends one content chunk a token;
- the output rows of the special tokens are zero, hence their logits are 0 while the largest of some hundred
  random logits is positive: greedy decoding never emits one, and a request ends at its ``max_tokens``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import string
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from flexnpu.console.numbers import Whole
from flexnpu.console.output import out
from flexnpu.console.program import SETTINGS, Program
from flexnpu.control import paths

#: In their order of ids; the first is also the padding token.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

#: ChatML, which Qwen's models use. `transformers serve` looks for its last line to tell prompt from answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "opt": "OPTForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

#: Of what `ensure` writes; a cache of another one is made anew.
_FORMAT = 4


def render(user_message: str) -> str:
    """What `CHAT_TEMPLATE` makes of a chat of one user message."""
    return f"<|im_start|>user\n{user_message}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class TinyModel:
    """The shape of a model; ``family`` is one of `ARCHITECTURES`. OPT has as many ``kv_heads`` as heads."""

    family: str
    hidden: int = 64
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    vocabulary: int = 512
    max_positions: int = 4096
    seed: int = 0
    weights: bool = True
    """Without, only the shape is written, for engines that make weights up: ``--load-format dummy``."""

    @property
    def parameters(self) -> int:
        """Number of weights, embeddings included (biases and norms left out: under one percent)."""
        head_dim = self.hidden // self.heads
        attention = self.hidden * head_dim * (2 * self.heads + 2 * self.kv_heads)
        return (
            self.layers * (attention + 3 * self.hidden * self.intermediate)
            + 2 * self.vocabulary * self.hidden
        )


def training_text() -> str:
    """Text that the vocabulary is learned from: this package's own sources, printable ASCII only."""
    root = Path(__file__).resolve().parent
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(root.glob("*.py")))
    return "".join(char for char in text if char in string.printable)


def make_tokenizer(directory: Path, vocabulary: int) -> None:
    """Write a tokenizer of ``vocabulary`` printable entries, and a chat template, to ``directory``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=[],
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator([training_text()], trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"the training text yields {tokenizer.get_vocab_size()} entries, {vocabulary} wanted"
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": SPECIAL_TOKENS[0],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def small(family: str, seed: int = 0) -> TinyModel:
    """Small, with heads of 64 elements: smaller ones vLLM-Ascend refuses. OPT has a pair of keys and values
    for each head."""
    kv_heads = 4 if family == "opt" else 2
    return TinyModel(family, hidden=256, heads=4, kv_heads=kv_heads, intermediate=512, seed=seed)


def make_model(directory: Path, spec: TinyModel) -> None:
    """Write config, random weights (float32) and generation config of ``spec`` to ``directory``.

    Done without transformers: it would import the NPU backend, and making a model needs no NPU.
    """
    if spec.family not in ARCHITECTURES:
        raise ValueError(f"unknown model family {spec.family!r}: {', '.join(ARCHITECTURES)}")
    if spec.weights:
        _make_weights(directory, spec)
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    _write_json(
        directory / "config.json",
        {
            "architectures": [ARCHITECTURES[spec.family]],
            "model_type": spec.family,
            "hidden_size": spec.hidden,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "vocab_size": spec.vocabulary,
            "max_position_embeddings": spec.max_positions,
            "tie_word_embeddings": False,
            "dtype": "float32",
            **_own_settings(spec),
            **special,
        },
    )
    _write_json(directory / "generation_config.json", {"do_sample": False, **special})


def _own_settings(spec: TinyModel) -> dict[str, Any]:
    """What the families' configurations do not have in common."""
    if spec.family == "opt":
        return {
            "ffn_dim": spec.intermediate,
            "word_embed_proj_dim": spec.hidden,
            "activation_function": "relu",
            "do_layer_norm_before": True,
        }
    return {
        "intermediate_size": spec.intermediate,
        "num_key_value_heads": spec.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        # Qwen2's own configurations leave it out, and vLLM-Ascend's connectors read it.
        "head_dim": spec.hidden // spec.heads,
    }


class _Weights:
    """Random tensors by their names."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self._random = np.random.default_rng(seed)
        self.tensors: dict[str, Any] = {}

    def normal(self, name: str, *shape: int) -> None:
        # Larger than a trained model's, so that greedy choices lie far apart and do not hang on rounding.
        self.tensors[name] = self._random.normal(0.0, 0.1, shape).astype("float32")

    def ones(self, name: str, size: int) -> None:
        import numpy as np

        self.tensors[name] = np.ones(size, np.float32)

    def matrix(self, name: str, rows: int, columns: int) -> None:
        self.normal(f"{name}.weight", rows, columns)

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.matrix(name, rows, columns)
        self.normal(f"{name}.bias", rows)

    def layer_norm(self, name: str, size: int) -> None:
        self.ones(f"{name}.weight", size)
        self.normal(f"{name}.bias", size)


def _make_weights(directory: Path, spec: TinyModel) -> None:
    from safetensors.numpy import save_file

    weights = _Weights(spec.seed)
    (_fill_opt if spec.family == "opt" else _fill)(weights, spec)
    weights.matrix("lm_head", spec.vocabulary, spec.hidden)
    weights.tensors["lm_head.weight"][: len(SPECIAL_TOKENS)] = 0
    save_file(weights.tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _fill_opt(weights: _Weights, spec: TinyModel) -> None:
    """All but the output layer, of the family with learned positions, layer norms and biases."""
    weights.matrix("model.decoder.embed_tokens", spec.vocabulary, spec.hidden)
    # OPT's positions begin at 2.
    weights.matrix("model.decoder.embed_positions", spec.max_positions + 2, spec.hidden)
    for index in range(spec.layers):
        layer = f"model.decoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights.linear(f"{layer}.self_attn.{name}", spec.hidden, spec.hidden)
        weights.linear(f"{layer}.fc1", spec.intermediate, spec.hidden)
        weights.linear(f"{layer}.fc2", spec.hidden, spec.intermediate)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            weights.layer_norm(f"{layer}.{name}", spec.hidden)
    weights.layer_norm("model.decoder.final_layer_norm", spec.hidden)


def _fill(weights: _Weights, spec: TinyModel) -> None:
    """All but the output layer, of the families with rotary positions."""
    head_dim = spec.hidden // spec.heads

    weights.matrix("model.embed_tokens", spec.vocabulary, spec.hidden)
    for index in range(spec.layers):
        layer = f"model.layers.{index}"
        for name, heads in (("q_proj", spec.heads), ("k_proj", spec.kv_heads), ("v_proj", spec.kv_heads)):
            weights.matrix(f"{layer}.self_attn.{name}", heads * head_dim, spec.hidden)
            if spec.family == "qwen2":
                weights.normal(f"{layer}.self_attn.{name}.bias", heads * head_dim)
        if spec.family == "qwen3":
            for name in ("q_norm", "k_norm"):
                weights.ones(f"{layer}.self_attn.{name}.weight", head_dim)
        weights.matrix(f"{layer}.self_attn.o_proj", spec.hidden, spec.heads * head_dim)
        weights.matrix(f"{layer}.mlp.gate_proj", spec.intermediate, spec.hidden)
        weights.matrix(f"{layer}.mlp.up_proj", spec.intermediate, spec.hidden)
        weights.matrix(f"{layer}.mlp.down_proj", spec.hidden, spec.intermediate)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights.ones(f"{layer}.{name}.weight", spec.hidden)
    weights.ones("model.norm.weight", spec.hidden)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def ensure(spec: TinyModel, cache: Path | None = None) -> Path:
    """Return a directory with the model and tokenizer of ``spec``, made offline on first use."""
    cache = cache or paths.cache_dir() / "models"
    description = json.dumps({**asdict(spec), "format": _FORMAT}, sort_keys=True)
    # Of all that it is made from: another shape must not take the place of a model that somebody serves.
    digest = hashlib.sha256(description.encode()).hexdigest()[:8]
    name = f"{spec.family}-h{spec.hidden}-l{spec.layers}-v{spec.vocabulary}-s{spec.seed}-{digest}"
    directory = cache / name
    marker = directory / "flexnpu.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") == description:
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
    try:
        make_tokenizer(building, spec.vocabulary)
        make_model(building, spec)
        (building / "flexnpu.json").write_text(description, encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        try:
            building.rename(directory)
        except OSError as error:
            # Another process has just made the same: then that one serves.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


@click.command("models", cls=Program, context_settings=SETTINGS)
@click.argument(
    "families", nargs=-1, required=True, type=click.Choice(tuple(ARCHITECTURES)), metavar="FAMILY..."
)
@click.option("--hidden", type=Whole(8, 1 << 16), default=TinyModel.hidden, show_default=True)
@click.option("--layers", type=Whole(1, 1024), default=TinyModel.layers, show_default=True)
@click.option("--intermediate", type=Whole(1, 1 << 20), default=TinyModel.intermediate, show_default=True)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where they are kept.  [default: the user's cache]",
)
def main(families: tuple[str, ...], hidden: int, layers: int, intermediate: int, cache: Path | None) -> None:
    """Make tiny random models of the families llama, opt, qwen2 and qwen3, and print their folders."""
    step = 2 * TinyModel.heads
    if hidden % step:
        raise click.BadParameter(f"{hidden} is not a multiple of {step}", param_hint="--hidden")
    for family in families:
        spec = TinyModel(family, hidden=hidden, layers=layers, intermediate=intermediate)
        out(ensure(spec, cache))


if __name__ == "__main__":
    main()
