"""The compressed key-value cache in vLLM on CPUs: `register` puts it in the place of vLLM's own attention backend."""
