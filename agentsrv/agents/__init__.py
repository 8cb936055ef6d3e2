"""The author's API: agents, their contexts and parameters, and the ways in which they run.

- `agent`: the decorated function, its contexts ``ctx``, and the checks at registration.
- `params`: arguments of an agent's function, validated against the task's params.
- `registry`: the agents and planners of one application; validation of plans.
- `questions`: ``ctx.ask``: a question, its schema, and the validation of answers.
- `values`: results and other values of authors as JSON for the log.
- `branching`, `fail_fast`: limits on the work of validating a value.
- `isolation`: plain functions in threads and processes.
- `llm`, `endpoint_answers`, `endpoint_errors`, `embedding_answers`, `reasoning`, `code_fences`: an
  OpenAI-compatible endpoint for chat and embeddings, behind ``ctx.llm``.

The package imports neither the engine nor the server. The engine calls an agent through `Agent` and
passes it a `StepContext`.
"""
