"""Hook points: what can be recorded and put back, and where it is in each architecture."""

from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.check import SelfCheck, self_check
from krs.hooks.families import Family, family_of, known_types, register_family
from krs.hooks.lens import to_transformer_lens
from krs.hooks.patch import patched
from krs.hooks.points import (
    ATTN_OUT,
    MLP_COEF,
    VALUE_VECTORS,
    ActivationPoint,
    Patch,
    Placement,
    Point,
    Setting,
    WeightPoint,
    register_point,
    setting,
)
from krs.hooks.record import Recording, record
from krs.hooks.unwrap import unwrap

__all__ = [
    "ATTN_OUT",
    "MLP_COEF",
    "VALUE_VECTORS",
    "ActivationPoint",
    "Anatomy",
    "Family",
    "Patch",
    "Placement",
    "Point",
    "Recording",
    "SelfCheck",
    "Setting",
    "WeightPoint",
    "anatomy",
    "family_of",
    "known_types",
    "patched",
    "record",
    "register_family",
    "register_point",
    "self_check",
    "setting",
    "to_transformer_lens",
    "unwrap",
]
