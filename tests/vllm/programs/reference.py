"""What transformers says of prompts, on the CPU in float32: the greedy tokens after each, and the logits of
the first. `margins` has by how much each of these tokens was better than the second best.

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
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(out.logits)[:, 0].topk(2).values
        answers.append(
            {
                "tokens": out.sequences[0, len(prompt) :].tolist(),
                "logits": out.logits[0][0].tolist(),
                "margins": (best[:, 0] - best[:, 1]).tolist(),
            }
        )
print(json.dumps(answers))
