"""The arithmetic of the formats: pure functions and constant tables, no files and no recipes."""
