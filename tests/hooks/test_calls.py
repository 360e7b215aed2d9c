"""Where the tokens of a forward stand, whatever the key-value cache is called."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from krs.hooks.calls import CACHES, CallWatch


class _Decoder(nn.Module):
    def forward(self, input_ids, **_):
        return input_ids


@pytest.mark.parametrize("name", CACHES)
def test_new_tokens_stand_behind_those_in_the_cache(name):
    cache, watch, decoder = DynamicCache(), CallWatch(), _Decoder()
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)  # three tokens
    handle = watch.attach(decoder)
    decoder(input_ids=torch.zeros(1, 1, dtype=torch.long), **{name: cache})
    assert watch.offset == 3
    decoder(input_ids=torch.zeros(1, 5, dtype=torch.long), **{name: None})
    assert watch.offset == 0
    handle.remove()
