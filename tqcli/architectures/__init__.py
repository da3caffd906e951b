"""One file per `model_type`: what each tensor of that model does. Found by name; there is no list to edit."""
