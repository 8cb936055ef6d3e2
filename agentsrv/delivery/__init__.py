"""Delivers committed events to subscribers.

Theory of operation. A subscription is a position in a task's log. `broker` receives each commit
once and passes it to the subscriptions of the task on this node. A subscription whose sink has room
gets the committed bytes at once. One that lags is skipped, and reads the missed events from the
store as soon as there is room. So a slow client costs its position, and nothing is lost.
"""
