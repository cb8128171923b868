"""One module per command, each with `NAME`, `HELP`, `arguments(parser)` and `execute(options)`."""
