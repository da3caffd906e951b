"""The plug-in that lets stock transformers load, run and save packed checkpoints."""
