"""The command line: parse, call, exit code; one file per command."""
