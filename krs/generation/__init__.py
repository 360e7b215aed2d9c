"""What a model says: its logits at some positions, and its greedy answers."""

from krs.generation.greedy import Generated, generate, greedy

__all__ = ["Generated", "generate", "greedy"]
