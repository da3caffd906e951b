"""`tq serve` behind its flags: what is served, on which engine, whether it fits, and the command that starts it."""
