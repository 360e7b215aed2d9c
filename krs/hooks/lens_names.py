"""TransformerLens' names of hook points, where they mean the same as a point of krs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from krs.errors import KrsError

HOOKS: Mapping[str, str] = MappingProxyType(
    {
        "hook_resid_pre": "resid_pre",
        "hook_resid_post": "resid",
        "hook_attn_out": "attn_added",
        "hook_mlp_out": "mlp_added",
        "attn.hook_q": "attn_query",
        "attn.hook_k": "attn_key",
        "attn.hook_v": "attn_value",
        "attn.hook_z": "head_out",
        "mlp.hook_post": "mlp_coef",
        "hook_in": "resid_pre",
        "hook_out": "resid",
        "attn.q.hook_out": "attn_query",
        "attn.k.hook_out": "attn_key",
        "attn.v.hook_out": "attn_value",
        "attn.o.hook_in": "head_out",
        "attn.o.hook_out": "attn_out",
        "mlp.out.hook_in": "mlp_coef",
        "mlp.out.hook_out": "mlp_out",
    }
)
"""Names inside a block, those of a bridge too, and the point that each of them is."""

_NEAREST = {
    "hook_resid_mid": "'resid_pre' and 'resid' are before and behind it",
    "mlp.hook_pre": "'mlp_coef' is what follows the activation",
    "mlp.hook_pre_linear": "'mlp_coef' is the product that it goes into",
    "mlp.hook_in": "'resid' of the layer before is the nearest, before the norm",
    "mlp.hook_out": "'mlp_out' is what the output projection returns, 'mlp_added' what the layer adds",
    "attn.hook_in": "'resid_pre' is before the norm",
    "attn.hook_out": "'attn_out' is what the output projection returns, 'attn_added' what the layer adds",
    "attn.hook_rot_q": "'attn_query' is before rotary positions",
    "attn.hook_rot_k": "'attn_key' is before rotary positions",
    "attn.hook_pattern": "'attn_query' and 'attn_key' decide it, 'head_out' is what follows",
    "attn.hook_attn_scores": "'attn_query' and 'attn_key' decide it, 'head_out' is what follows",
    "attn.hook_result": "'head_out' with .heads(…) is the same before the output projection",
}
_BEFORE = "hook_q_input hook_k_input hook_v_input hook_attn_in hook_mlp_in ln1.hook_normalized ln2.hook_normalized"
_NEAREST |= dict.fromkeys(_BEFORE.split(), "'resid_pre' is the layer's input; a norm's output is a point of its module")

HOOK_OF: Mapping[str, str] = MappingProxyType({point: hook for hook, point in reversed(list(HOOKS.items()))})
"""For each point, the name that its values get."""


def is_hook_name(name: str) -> bool:
    """Whether a name is one that TransformerLens gives to a hook point.

    >>> is_hook_name("blocks.{l}.hook_resid_post"), is_hook_name("resid")
    (True, False)
    """
    return name.startswith("blocks.") or re.search(r"(^|\.)hook_\w+$", name) is not None


def point_name(name: str) -> str:
    """The point that a hook point of TransformerLens is; its layer is written `{l}` or left out.

    >>> point_name("blocks.{l}.attn.hook_z")
    'head_out'

    Raises `KrsError` for a hook point that is no point of krs, with the nearest ones, and for a layer in the name.
    """
    found = re.fullmatch(r"(?:blocks\.(\d+|\{\w*\})\.)?(.+)", name)
    inside = found[2] if found is not None else name
    if found is not None and found[1] is not None and found[1].isdigit():
        raise KrsError(
            f"{name!r} names layer {found[1]}, and layers are said apart from points: write 'blocks.{{l}}.{inside}', "
            f"with windows=krs.windows.of([[{found[1]}]]), layers=[{found[1]}] or .at({found[1]})"
        )
    if inside in HOOKS:
        return HOOKS[inside]
    near = _NEAREST.get(inside, f"hook points that are points: {', '.join(sorted(HOOKS))}")
    raise KrsError(
        f"TransformerLens' {name!r} is no point of krs: {near}. Any module's input or output becomes one with "
        "krs.hooks.ActivationPoint(…, role='.path.in.layer', side='output')"
    )
