"""Concepts: what to ask a model about, and about what else."""

from krs.data.concepts import Concept, concepts, load_concept

__all__ = ["Concept", "concepts", "load_concept"]
