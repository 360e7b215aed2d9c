"""Which layers' coefficients carry an answer? A patching experiment written with hook points.

Runs on the bundled model in under a minute:  python examples/custom_patching.py

The vanilla model reads a question; its MLP coefficients at the last token are recorded. Then the same model reads a
question about something else, and the recorded coefficients are put in at the last token, a window of layers at a time:
how far does the probability of the first answer's first word rise?
"""

import torch

import krs
from krs import MLP_COEF, windows
from krs.hooks import patched, record

model, tokenizer = krs.load("smollm2")
asked = tokenizer("The capital of France is", return_tensors="pt")
other = tokenizer("The capital of Egypt is", return_tensors="pt")
answer = tokenizer(" Paris")["input_ids"][0]


def probability(inputs: dict) -> float:
    """Of the answer's first token as the next one."""
    with torch.no_grad():
        return torch.softmax(model(**inputs).logits[0, -1], -1)[answer].item()


with record(model, MLP_COEF) as acts:
    print(f"asked: {probability(asked):.4f}")
print(f"other: {probability(other):.4f}")

for window in windows.sliding(6).over(model.config.num_hidden_layers)[::6]:
    with patched(model, MLP_COEF.at(*window.layers, positions=-1).set(acts)):
        print(f"other, with the coefficients of layers {window.first}-{window.last}: {probability(other):.4f}")
