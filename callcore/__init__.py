"""Live and post-call speech analytics for Asterisk, on your own machines."""

__version__ = "0.1.0"
