"""The command line: a verb is a module with ``add_arguments`` and ``run``; others are shared."""
