"""Loading models by name, the bundled small model, and the checks that a pair belongs together."""

from krs.models.load import find_tokenizer, load
from krs.models.pair import check_pair, dtype_of
from krs.models.places import locate

__all__ = ["check_pair", "dtype_of", "find_tokenizer", "load", "locate"]
