"""One module a subcommand of ``int8d``: ``add_arguments(parser)`` and ``run(args) -> exit status``."""
