"""The commands: flags, the run directory, what each does step by step."""
