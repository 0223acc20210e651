"""Topics, sessions and acknowledgements; no tensor is known here."""
