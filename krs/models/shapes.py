"""What a model by name would be, without its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from krs.errors import KrsError
from krs.models.hub import hub_options, json_of, offline, source
from krs.models.olmo import is_original, to_config
from krs.models.places import locate


def skeleton(where: str, local: bool) -> nn.Module:
    """The model that a name stands for, its weights on the device `meta`: shapes alone; of an adapter, its base.

    Raises `KrsError` for a config.json that cannot be had.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, OlmoConfig

    options = source(local)
    try:
        with offline(options):
            adapter = json_of(where, "adapter_config.json", options)
            said = {} if adapter else json_of(where, "config.json", options)
            config: Any = None
            if is_original(said):
                config = OlmoConfig(**to_config(said))
            elif not adapter:
                config = AutoConfig.from_pretrained(where, **hub_options(options))
        if adapter:
            return skeleton(*locate(adapter["base_model_name_or_path"]))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except KrsError:
        raise
    except (OSError, ValueError, KeyError) as reason:
        raise KrsError(f"cannot tell what model {where!r} is: {str(reason).strip().splitlines()[0]}") from None
