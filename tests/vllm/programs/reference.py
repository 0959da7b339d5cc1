"""Greedy tokens of a model by transformers, on the CPU in float32.

reference.py MODEL TOKENS, with prompts (lists of token ids) as JSON on stdin.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokens = int(sys.argv[2])
answers = []
with torch.no_grad():
    for prompt in json.load(sys.stdin):
        given = torch.tensor([prompt])
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        answers.append(out[0, len(prompt) :].tolist())
print(json.dumps(answers))
