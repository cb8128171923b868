"""The command line: `parser` knows the commands, `main` runs one, and each has a module with `execute(options)`."""
