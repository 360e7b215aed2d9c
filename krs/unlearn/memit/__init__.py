"""MEMIT with two objectives for unlearning: value vectors are computed, not trained. See `docs/memit.md`."""

from krs.unlearn.memit.config import MemitConfig, MemitEmptyConfig, MemitEntropyConfig
from krs.unlearn.memit.method import Memit, MemitEmpty, MemitEntropy
from krs.unlearn.memit.moments import Covariance, Moment, covariance
from krs.unlearn.memit.requests import Request, requests_from, to_requests

__all__ = [
    "Covariance",
    "Memit",
    "MemitConfig",
    "MemitEmpty",
    "MemitEmptyConfig",
    "MemitEntropy",
    "MemitEntropyConfig",
    "Moment",
    "Request",
    "covariance",
    "requests_from",
    "to_requests",
]
