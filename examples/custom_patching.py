# %% [markdown]
"""Which layers' coefficients carry an answer, and which heads? Patching experiments written with hook points.

Runs on the bundled model in under a minute:  python examples/custom_patching.py
The file is a notebook too, in the percent format that editors and jupytext open.

The vanilla model reads a question; its MLP coefficients at the last token are recorded. Then the same model reads a
question about something else, and the recorded coefficients are put in at the last token, a window of layers at a time:
how far does the probability of the first answer's first word rise?
"""

# %%
import torch

import krs
from krs import ATTN_OUT, HEAD_OUT, MLP_COEF, windows
from krs.hooks import patched, record

model, tokenizer = krs.load("smollm2")
asked = tokenizer("The capital of France is", return_tensors="pt")
other = tokenizer("The capital of Egypt is", return_tensors="pt")
answer = tokenizer(" Paris")["input_ids"][0]


def probability(inputs: dict) -> float:
    """Of the answer's first token as the next one."""
    with torch.no_grad():
        return torch.softmax(model(**inputs).logits[0, -1], -1)[answer].item()


# %% Points, layers and one position: a recording is put in, a window at a time
with record(model, MLP_COEF) as acts:
    print(f"asked: {probability(asked):.4f}")
print(f"other: {probability(other):.4f}")

for window in windows.sliding(6).over(model.config.num_hidden_layers)[::6]:
    with patched(model, MLP_COEF.at(*window.layers, positions=-1).set(acts)):
        print(f"other, with the coefficients of layers {window.first}-{window.last}: {probability(other):.4f}")

# %% A function of your own: attention outputs of the last token, switched off in one layer
for layer in (5, 15, 25):
    with patched(model, ATTN_OUT.at(layer, positions=-1).map(lambda value: 0 * value)):
        print(f"asked, without what attention adds at layer {layer}: {probability(asked):.4f}")


# %% Heads as an axis, and a measure of your own
def lead(logits, reference_logits, target_ids):
    """By how many nats the answer's token is ahead of the best other one."""
    logprobs = torch.log_softmax(logits, -1)
    own = logprobs.gather(-1, target_ids[:, None])
    return (own - logprobs.scatter(-1, target_ids[:, None], -torch.inf).amax(-1, keepdim=True))[:, 0]


donor, _ = krs.load("smollm2")  # the same model again: recipient and donor are two objects
found = krs.patch_sweep(
    model,
    donor,
    ["The capital of Egypt is"],
    donor_prompts=["The capital of France is"],
    answers=[" Paris"],
    settings=HEAD_OUT.each_head(),
    windows=windows.of([[20], [25]]),
    positions="last_prompt",
    n_tokens=1,
    measures=[lead],
    tokenizer=tokenizer,
    progress=False,
)
print("the lead of ' Paris' with one head of the other question put in, by layer and head:")
print(found.table("lead").round(2).to_string())
