"""The built-in agents: retriever, analyzer, writer, validator, optimizer, and their planner.

They use what an author of agents may use: the step, its context, the knowledge base and the
language model. `report` and `extract` hold what they share: the form of a report with citations,
and the choice of the sentences that it quotes.
"""
