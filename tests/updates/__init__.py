"""Remote updates: the tables of docs/updates.md, and what fills them."""
