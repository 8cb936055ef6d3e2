"""Pure facts: commands, events, states, plans. No I/O, no clock, no event loop."""
