"""The command line: flags, help, printing. Nothing is decided here."""
