"""What a model says: its logits at some positions, and its greedy answers."""

from krs.generation.greedy import Generated, generate, greedy
from krs.generation.speak import Spoken, speak

__all__ = ["Generated", "Spoken", "generate", "greedy", "speak"]
