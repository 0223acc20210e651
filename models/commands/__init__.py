"""One module a subcommand of ``int8d-make``: ``add_arguments(parser)`` and ``run(args) -> exit status``."""
