"""Chunks: de-duplication, volumes, nodes, replicas, cache. Knows no names."""

from flakefs.engine.engine import Engine, open_engine
from flakefs.engine.options import EngineOptions, EngineStatistics

__all__ = ["Engine", "EngineOptions", "EngineStatistics", "open_engine"]
