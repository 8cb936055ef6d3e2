"""The knowledge base: a folder of documents that agents can search.

The names below are imported when they are first used: the built-in agents use modules of this
package about documents, without the index.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsrv.agents.knowledge.ranking import Passage
    from agentsrv.agents.knowledge.search import IndexReport, KnowledgeBase

_MODULES = {
    "IndexReport": "agentsrv.agents.knowledge.search",
    "KnowledgeBase": "agentsrv.agents.knowledge.search",
    "Passage": "agentsrv.agents.knowledge.ranking",
}

__all__ = ["IndexReport", "KnowledgeBase", "Passage"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name (PEP 562)."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value
