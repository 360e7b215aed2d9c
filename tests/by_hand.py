"""The sweep written out by hand: torch hooks, one prompt at a time, no padding, full logits.

It shares no code with krs. The paths of each family are spelled out here once more on purpose.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

PATHS = {
    "llama": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "starcoder2": ("model.layers", "mlp.c_proj", "self_attn.o_proj"),
    "phi": ("model.layers", "mlp.fc2", "self_attn.dense"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense"),
    "gpt2": ("transformer.h", "mlp.c_proj", "attn.c_proj"),
    "gpt_neo": ("transformer.h", "mlp.c_proj", "attn.attention.out_proj"),
    "gptj": ("transformer.h", "mlp.fc_out", "attn.out_proj"),
    "falcon": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense"),
    "bloom": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense"),
    "opt": ("model.decoder.layers", "fc2", "self_attn.out_proj"),
    "mpt": ("transformer.blocks", "ffn.down_proj", "attn.out_proj"),
    "qwen3_5_text": ("model.layers", "mlp.down_proj", "self_attn.o_proj", "linear_attn.out_proj"),
    "olmo_hybrid": ("model.layers", "mlp.down_proj", "self_attn.o_proj", "linear_attn.o_proj"),
    "lfm2": ("model.layers", "feed_forward.w2", "self_attn.out_proj", "conv.out_proj"),
}
"""The layers, the MLP's output projection, the attention's, and that of what is in its place in other layers."""


def _module(model: nn.Module, layer: int, part: int) -> nn.Module:
    layers, *parts = PATHS.get(model.config.model_type, PATHS["llama"])
    inside = model.get_submodule(f"{layers}.{layer}")
    if part == 1 and not hasattr(inside, parts[1].partition(".")[0]):
        part = 2
    return inside.get_submodule(parts[part])


def greedy(model: nn.Module, prompt: list[int], n_tokens: int, cached: bool = False) -> list[int]:
    """The answer, every token by a forward of all before it; `cached` keeps keys and values, for large models."""
    ids, kept = list(prompt), None
    while len(ids) < len(prompt) + n_tokens:
        with torch.no_grad():
            if cached:
                out = model(torch.tensor([ids if kept is None else ids[-1:]]), past_key_values=kept, use_cache=True)
                kept = out.past_key_values
            else:
                out = model(torch.tensor([ids]))
            ids.append(int(out.logits[0, -1].argmax()))
        if ids[-1] == model.config.eos_token_id:
            break
    return ids[len(prompt) :]


def _vanilla_values(model: nn.Module, ids: torch.Tensor, n_layers: int) -> tuple[torch.Tensor, dict]:
    kept: dict = {}
    handles = []
    for layer in range(n_layers):

        def coefficients(_, args, layer=layer):
            kept["mlp_coef", layer] = args[0].clone()

        def attention(_, __, out, layer=layer):
            kept["attn_out", layer] = out.clone()

        handles.append(_module(model, layer, 0).register_forward_pre_hook(coefficients))
        handles.append(_module(model, layer, 1).register_forward_hook(attention))
    with torch.no_grad():
        logits = model(ids).logits[0]
    for handle in handles:
        handle.remove()
    return logits, kept


def _restored_logits(
    unlearned: nn.Module, vanilla: nn.Module, ids: torch.Tensor, kept: dict, setting: str, layers: list[int]
) -> torch.Tensor:
    handles, weights = [], []
    for layer in layers:
        mlp, attn = _module(unlearned, layer, 0), _module(unlearned, layer, 1)
        if "mlp_coef" in setting:
            handles.append(mlp.register_forward_pre_hook(lambda _, a, x=kept["mlp_coef", layer]: (x,)))
        if "attn_out" in setting:
            handles.append(attn.register_forward_hook(lambda _, a, o, x=kept["attn_out", layer]: x))
        if "value_vectors" in setting:
            weights.append((mlp.weight, mlp.weight.detach().clone()))
            with torch.no_grad():
                mlp.weight.copy_(_module(vanilla, layer, 0).weight)
    with torch.no_grad():
        logits = unlearned(ids).logits[0]
        for parameter, saved in weights:
            parameter.copy_(saved)
    for handle in handles:
        handle.remove()
    return logits


def sweep(
    vanilla: nn.Module,
    unlearned: nn.Module,
    prompts: list[list[int]],
    settings: list[str],
    windows: list[list[int]],
    n_tokens: int,
    cached: bool = False,
) -> np.ndarray:
    """KRS `[setting, window]` by Eq. 3."""
    n_layers = len(vanilla.get_submodule(PATHS.get(vanilla.config.model_type, PATHS["llama"])[0]))
    base = 0.0
    restored = np.zeros((len(settings), len(windows)))
    for prompt in prompts:
        answer = greedy(vanilla, prompt, n_tokens, cached)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        target, kept = _vanilla_values(vanilla, ids, n_layers)
        with torch.no_grad():
            plain = unlearned(ids).logits[0]
        base += ((plain[scored] - target[scored]).double() ** 2).mean(-1).sum().item()
        for i, setting in enumerate(settings):
            for j, layers in enumerate(windows):
                logits = _restored_logits(unlearned, vanilla, ids, kept, setting, layers)
                restored[i, j] += ((logits[scored] - target[scored]).double() ** 2).mean(-1).sum().item()
    return 1 - restored / base
