"""The embedded server: OpenAI's HTTP interface around one transformers model, one decode at a time."""
