"""FastAGI: what Asterisk's dialplan asks of us in the middle of a call."""
