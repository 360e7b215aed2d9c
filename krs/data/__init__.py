"""Concepts: what to ask a model about, and about what else."""

from krs.data.concepts import Concept, as_chat, concepts, load_concept, load_concepts
from krs.data.extraction import Extraction, extract

__all__ = ["Concept", "Extraction", "as_chat", "concepts", "extract", "load_concept", "load_concepts"]
