"""Prompts that a model cannot read are refused, and no others."""

import pytest

from krs import KrsError
from krs.generation.fits import check_fits
from tests.hooks.test_rope import BY_LAYER, DYNAMIC, LONG
from tests.tiny import VOCAB, build


def test_the_context_and_the_vocabulary():
    model = build("llama")
    check_fits(((5,) * 60, (VOCAB - 1,)), 4, model)
    with pytest.raises(KrsError, match="prompt 0 has 60 tokens; with n_tokens=5 it is longer than the model's context"):
        check_fits(((5,) * 60,), 5, model)
    with pytest.raises(KrsError, match=f"answer 0 has the token id {VOCAB}, but the model's vocabulary has {VOCAB}"):
        check_fits(((5,),), 5, model, answers=((VOCAB,),))


def test_dynamic_factors_go_beyond_the_configured_length_by_their_factor():
    model = build("llama", **(DYNAMIC | {"max_position_embeddings": 8}))
    check_fits(((5,) * 20,), 12, model)
    with pytest.raises(KrsError, match="longer than the model's context of 32"):
        check_fits(((5,) * 20,), 13, model)
    with pytest.raises(KrsError, match="longer than the model's context of 64"):
        check_fits(((5,) * 60,), 12, build("phi3", **LONG))


def test_factors_of_each_type_of_layer():
    """Gemma 3's sliding layers have plain factors: no text is too long for their window."""
    short = {"max_position_embeddings": 8}
    model = build("gemma3", **(BY_LAYER | short))
    check_fits(((5,) * 20,), 12, model)
    with pytest.raises(KrsError, match="longer than the model's context of 32"):
        check_fits(((5,) * 20,), 13, model)
    plain = dict.fromkeys(BY_LAYER["rope_parameters"], BY_LAYER["rope_parameters"]["sliding_attention"])
    with pytest.raises(KrsError, match="longer than the model's context of 8"):
        check_fits(((5,) * 20,), 12, build("gemma3", **(BY_LAYER | short | {"rope_parameters": plain})))
