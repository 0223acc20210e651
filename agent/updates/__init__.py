"""New models over the air: what may be installed, how it comes, and how it is put into service."""
