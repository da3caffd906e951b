"""The Hugging Face Hub: headers first, then byte ranges or whole files."""
