import pytest
import torch
from torch import nn

from krs.errors import KrsError
from krs.hooks.values import by_position, first_tensor, put, with_first


def test_put_touches_only_what_is_meant():
    own, other = torch.zeros(2, 3, 4), torch.arange(24.0).reshape(2, 3, 4)
    where = torch.tensor([[True, False, False], [False, False, True]])
    found = put(own, other, where, [1, 3])
    expected = own.clone()
    expected[0, 0, [1, 3]] = other[0, 0, [1, 3]]
    expected[1, 2, [1, 3]] = other[1, 2, [1, 3]]
    assert torch.equal(found, expected)
    assert torch.equal(own, torch.zeros(2, 3, 4))
    assert torch.equal(put(own, other[..., [1, 3]], where, [1, 3]), expected)


def test_what_is_put_is_a_copy():
    other = torch.ones(1, 2, 3)
    put(torch.zeros(1, 2, 3), other).mul_(5)
    assert torch.equal(other, torch.ones(1, 2, 3))


@pytest.mark.parametrize("shape", [(2, 5, 4), (10, 4), (2, 5, 3, 4), (2, 3, 5, 4)])
def test_every_layout_is_seen_position_by_position(shape):
    value = torch.randn(shape)
    view, back = by_position(value, 2, 5, nn.Identity())
    assert view.shape[:2] == (2, 5)
    assert torch.equal(back(view), value)


def test_heads_as_many_as_positions_are_told_apart_by_what_was_seen_before():
    module = nn.Identity()
    value = torch.randn(2, 3, 3, 4)
    with pytest.raises(KrsError, match="heads and positions are equally many: run krs.hooks.self_check"):
        by_position(value, 2, 3, module)
    by_position(torch.randn(2, 3, 7, 4), 2, 7, module)
    view, _ = by_position(value, 2, 3, module)
    assert torch.equal(view, value.transpose(1, 2))


def test_a_value_without_positions_is_refused():
    with pytest.raises(KrsError, match=r"its value is \[2, 4\], which has no axis of 5 positions in a batch of 2"):
        by_position(torch.randn(2, 4), 2, 5, nn.Identity())


def test_the_value_of_a_call_by_keyword():
    x = torch.ones(1)
    slot, value = first_tensor((), {"mask": None, "hidden_states": x})
    assert slot == "hidden_states"
    assert value is x
    args, kwargs = with_first((), {"mask": None, "hidden_states": x}, slot, 2 * x)
    assert args == ()
    assert torch.equal(kwargs["hidden_states"], 2 * x)
    with pytest.raises(KrsError, match="called without a tensor"):
        first_tensor((1,), {})
