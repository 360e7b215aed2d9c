"""Hook points: what can be recorded and put back, and where it is in each architecture."""

from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.check import SelfCheck, self_check
from krs.hooks.families import family_of, known_types, register_family
from krs.hooks.family import Family, OneOf
from krs.hooks.lens import to_transformer_lens
from krs.hooks.library import ATTN_OUT, MLP_COEF, VALUE_VECTORS
from krs.hooks.patch import patched
from krs.hooks.points import ActivationPoint, Patch, Placement, Point, Setting, WeightPoint
from krs.hooks.record import Recording, record
from krs.hooks.registry import register_point, setting
from krs.hooks.unwrap import unwrap

__all__ = [
    "ATTN_OUT",
    "MLP_COEF",
    "VALUE_VECTORS",
    "ActivationPoint",
    "Anatomy",
    "Family",
    "OneOf",
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
