"""Convert, inspect, verify and load compressed Hugging Face checkpoints.

Importing this package loads neither torch nor transformers: each public name is imported on first use.
"""

__version__ = "0.1.0"
