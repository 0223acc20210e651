"""Under fire: overload, deadlines, crashes and hangs, hostile payloads, a day's soak, each against a real daemon."""
