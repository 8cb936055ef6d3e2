"""Observability: metrics, spans, logs, and a watchdog for the event loop.

`server_metrics` counts, `instruments` names the counts as metrics, and `prometheus` formats them.
`tracing` makes spans, and `export` sends them. `logs` formats records, and `safe_text` and
`nonblocking_output` write them safely.
"""
