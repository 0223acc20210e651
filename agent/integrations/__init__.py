"""Other systems' own languages, spoken on request: Home Assistant, Sparkplug B."""
