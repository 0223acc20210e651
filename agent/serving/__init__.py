"""From a request to its reply, with no idea of where either travels."""
