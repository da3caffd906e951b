"""The configuration of transformers for what is served, made from its config.json alone; nothing of it is run."""

from typing import Any

from tqcli.errors import InputError
from tqcli.serving.subject import Subject


def transformers_config(subject: Subject) -> Any | None:
    """None where transformers does not know the model. Raises InputError where it refuses the config.json."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if subject.model_type not in CONFIG_MAPPING:
        return None
    # Not from the folder: what an HLWQ folder lacks has been found already.
    try:
        return CONFIG_MAPPING[subject.model_type].from_dict(dict(subject.config))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(
            f"the `config.json` of `{subject.source}` is refused by transformers", why=str(error)
        ) from error
