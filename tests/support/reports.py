"""Reports on the examples' texts, written by the built-in agents without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentsrv.builtin.analyzer import AnalyzerAgent
from agentsrv.builtin.optimizer import OptimizerAgent
from agentsrv.builtin.planner import report
from agentsrv.builtin.retriever import RetrieverAgent
from agentsrv.builtin.validator import ValidatorAgent
from agentsrv.builtin.writer import WriterAgent
from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.knowledge.search import KnowledgeBase
from agentsrv.models.plan import Step
from tests.support.agent_contexts import make_context, run

AGENTS = {
    "retriever": RetrieverAgent(),
    "analyzer": AnalyzerAgent(),
    "writer": WriterAgent(),
    "validator": ValidatorAgent(),
    "optimizer": OptimizerAgent(),
}
QUESTIONS = {
    "How does async I/O affect throughput?": "Asynchronous I/O raises throughput when",
    "What are the costs of threads?": "Switching between two threads of one process typically costs",
    "When is a retry safe?": "A retry is safe only if repeating the operation",
    "Why does my asyncio server freeze for two seconds?": "freezes every connection of the server",
    "How large should a connection pool be?": "connections in use equal requests per second",
    "What is back-pressure?": "Back-pressure is the signal by which a slow consumer",
}


async def run_steps(
    steps: tuple[Step, ...], task: str, database: Path
) -> tuple[dict[str, str], dict[str, Any]]:
    """Run steps one after the other on the examples; return their outputs and results."""
    base = KnowledgeBase(KNOWLEDGE, database)
    await base.refresh()
    outputs: dict[str, str] = {}
    results: dict[str, Any] = {}
    for step in steps:
        known = {name: results[name] for name in step.depends_on}
        texts = {name: outputs[name] for name in step.depends_on}
        ctx = make_context(task, base.search, known, texts)
        outputs[step.step_id], results[step.step_id] = await run(AGENTS[step.agent], ctx, step)
    await base.close()
    return outputs, results


async def report_on(task: str, database: Path) -> tuple[str, dict[str, Any]]:
    """Return the report on ``task`` and the results of its steps."""
    outputs, results = await run_steps(report(task), task, database)
    return outputs["step_003"], results
