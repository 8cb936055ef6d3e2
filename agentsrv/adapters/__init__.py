"""Other protocols in front of the same commands and events, one package each."""
