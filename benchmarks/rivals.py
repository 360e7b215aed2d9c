"""The same sweep as others would write it: a loop of torch hooks, the released notebooks' way, and three libraries.

Each way is a class with `logits(layers)`: the unlearned model's logits on one padded batch with the vanilla
coefficients and attention outputs put back at some layers (the notebooks' way puts value vectors back). All of them
keep the vanilla activations of every layer, and all of them run the whole model once a restoration, so a few windows
tell how long all would take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from krs.prompts import TokenBatch


class Padded:
    """A batch as one would pad it, its vanilla activations, and the score of logits."""

    def __init__(self, vanilla: nn.Module, unlearned: nn.Module, batch: TokenBatch, answers: tuple) -> None:
        rows = [
            tokens[:length] + a for tokens, length, a in zip(batch.tokens, batch.prompt_lengths, answers, strict=True)
        ]
        longest = max(map(len, rows))
        device = next(vanilla.parameters()).device
        self.vanilla, self.unlearned = vanilla, unlearned
        self.ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=device)
        self.mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        self.scored = torch.zeros_like(self.mask, dtype=torch.bool)
        for i, positions in enumerate(batch.scored):
            self.scored[i, list(positions)] = True
        self.kept: dict[tuple[str, int], Tensor] = {}
        handles = []
        for i, layer in enumerate(vanilla.model.layers):
            mlp, attn = layer.mlp.down_proj, layer.self_attn.o_proj
            handles.append(mlp.register_forward_pre_hook(lambda _, a, i=i: self.kept.update({("m", i): a[0]})))
            handles.append(attn.register_forward_hook(lambda _, a, o, i=i: self.kept.update({("a", i): o})))
        self.target = self.run(vanilla)
        for handle in handles:
            handle.remove()
        self.base = self.mse(self.run(unlearned))

    @torch.no_grad()
    def run(self, model: nn.Module) -> Tensor:
        """All logits."""
        return model(input_ids=self.ids, attention_mask=self.mask).logits

    def mse(self, logits: Tensor) -> float:
        """Over the scored tokens."""
        return ((logits - self.target)[self.scored].float() ** 2).mean().item()

    def score(self, logits: Tensor) -> float:
        """KRS."""
        return 1 - self.mse(logits) / self.base


class Loop:
    """A loop of torch hooks."""

    name = "a loop of torch hooks"

    def __init__(self, given: Padded) -> None:
        self.given = given

    @contextmanager
    def _hooks(self, layers: tuple[int, ...]) -> Iterator[None]:
        handles = []
        for i in layers:
            layer = self.given.unlearned.model.layers[i]
            m, a = self.given.kept["m", i], self.given.kept["a", i]
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, __, m=m: (m,)))
            handles.append(layer.self_attn.o_proj.register_forward_hook(lambda _, __, ___, a=a: a))
        yield
        for handle in handles:
            handle.remove()

    def logits(self, layers: tuple[int, ...]) -> Tensor:
        """With coefficients and attention outputs put back."""
        with self._hooks(layers):
            return self.given.run(self.given.unlearned)


class Notebook:
    """The released notebooks' way with value vectors: write them in, run, load the whole state dict again."""

    name = "the notebooks' protocol (value vectors)"

    def __init__(self, given: Padded) -> None:
        self.given = given
        self.saved = {k: v.clone() for k, v in given.unlearned.state_dict().items()}

    @torch.no_grad()
    def logits(self, layers: tuple[int, ...]) -> Tensor:
        """With value vectors put back."""
        model = self.given.unlearned
        for i in layers:
            model.model.layers[i].mlp.down_proj.weight.copy_(self.given.vanilla.model.layers[i].mlp.down_proj.weight)
        logits = self.given.run(model)
        model.load_state_dict(self.saved)
        return logits


class NNsight:
    """nnsight: a trace in which inputs and outputs are assigned in the order of the forward."""

    name = "nnsight"

    def __init__(self, given: Padded, tokenizer: object) -> None:
        from nnsight import LanguageModel

        self.given = given
        self.model = LanguageModel(given.unlearned, tokenizer=tokenizer)

    @torch.no_grad()
    def logits(self, layers: tuple[int, ...]) -> Tensor:
        """With coefficients and attention outputs put back."""
        kept = self.given.kept
        inputs = {"input_ids": self.given.ids, "attention_mask": self.given.mask}
        with self.model.trace(inputs):
            for i in layers:
                self.model.model.layers[i].self_attn.o_proj.output = kept["a", i]
                self.model.model.layers[i].mlp.down_proj.input = kept["m", i]
            found = self.model.output.logits.save()
        return found


class Pyvene:
    """pyvene: an intervenable model a window, with constants as interventions."""

    name = "pyvene"

    def __init__(self, given: Padded) -> None:
        import pyvene

        self.given, self.pyvene = given, pyvene

    @torch.no_grad()
    def logits(self, layers: tuple[int, ...]) -> Tensor:
        """With coefficients and attention outputs put back."""
        kept = self.given.kept
        places = []
        for i in layers:
            m, a = kept["m", i], kept["a", i]
            places += [
                {"component": f"model.layers[{i}].mlp.down_proj.input", "intervention": lambda b, s, m=m: m},
                {"component": f"model.layers[{i}].self_attn.o_proj.output", "intervention": lambda b, s, a=a: a},
            ]
        model = self.pyvene.IntervenableModel(places, model=self.given.unlearned)
        return model(base={"input_ids": self.given.ids, "attention_mask": self.given.mask})[1].logits


class Lens:
    """TransformerLens: `run_with_hooks` on a bridge around a copy of the unlearned model."""

    name = "TransformerLens"

    def __init__(self, given: Padded) -> None:
        import copy

        from transformer_lens.model_bridge.sources import build_bridge_from_module

        self.given = given
        model = copy.deepcopy(given.unlearned)
        self.bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config).eval()

    @torch.no_grad()
    def logits(self, layers: tuple[int, ...]) -> Tensor:
        """With coefficients and attention outputs put back."""
        hooks = []
        for i in layers:
            m, a = self.given.kept["m", i], self.given.kept["a", i]
            hooks.append((f"blocks.{i}.mlp.hook_post", lambda value, hook, m=m: m))
            hooks.append((f"blocks.{i}.attn.hook_out", lambda value, hook, a=a: a))
        return self.bridge.run_with_hooks(self.given.ids, attention_mask=self.given.mask, fwd_hooks=hooks)
