"""Who refused analysis: the hash of a number, and what is done with the call."""
