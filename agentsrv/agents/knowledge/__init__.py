"""The knowledge base: a folder of documents that agents can search."""

from agentsrv.agents.knowledge.ranking import Passage
from agentsrv.agents.knowledge.search import IndexReport, KnowledgeBase

__all__ = ["IndexReport", "KnowledgeBase", "Passage"]
