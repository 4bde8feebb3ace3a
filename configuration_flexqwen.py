"""FlexQwenConfig: what FlexQwen adds to Qwen3Config."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config

MASKED_PREDICTION = ("next_token", "in_place")

AUTO_MAP = {
    "AutoConfig": "configuration_flexqwen.FlexQwenConfig",
    "AutoModel": "modeling_flexqwen.FlexQwenModel",
    "AutoModelForCausalLM": "modeling_flexqwen.FlexQwenForCausalLM",
    "AutoModelForMaskedLM": "modeling_flexqwen.FlexQwenForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_flexqwen.FlexQwenForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_flexqwen.FlexQwenForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_flexqwen.FlexQwenForQuestionAnswering",
}


@strict
class FlexQwenConfig(Qwen3Config):
    """A `Qwen3Config` with two more fields and one optional attribute.

    Args:
        masked_prediction (`str`, defaults to `"next_token"`):
            Where a masked token is predicted. `"next_token"`: from the output one position earlier, through the same
            label shift as causal prediction (GPT-BERT, arXiv 2410.24159, section 2). `"in_place"`: from the output at
            the mask itself, as BERT does.
        mask_token_id (`int`, *optional*):
            Id of the mask token. `FlexQwenForMaskedLM` needs it.
        is_causal (`bool`, *optional*):
            Not a field: an attribute that is absent unless given, here or to `from_pretrained`, since its other readers
            (transformers, vLLM, sentence-transformers) take an absent one for causal, and None for bidirectional.
            Where it is set, it is the attention mode of every class; where it is absent, each class has its own default
            (causal for the base model and `FlexQwenForCausalLM`, bidirectional for the encoder heads). `is_causal=` in
            a call wins over both.

    Raises:
        ValueError: `masked_prediction` is not one of the two.
    """

    model_type = "flexqwen"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "row_losses", "row_labels"]
    _auto_class = "AutoConfig"

    masked_prediction: str = "next_token"
    mask_token_id: int | None = None

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in `PreTrainedConfig`, which drops what is not an attribute of the config that it has read."""
        if "is_causal" in kwargs:
            config_dict = {**config_dict, "is_causal": kwargs.pop("is_causal")}
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        if kwargs.get("is_causal", False) is None:
            del kwargs["is_causal"]
        if self.masked_prediction not in MASKED_PREDICTION:
            raise ValueError(
                f"masked_prediction is {self.masked_prediction!r}; allowed: {', '.join(MASKED_PREDICTION)}"
            )
        # save_pretrained names only the class that it saves; with all of them here, every Auto class finds its own.
        if not kwargs.get("auto_map"):
            kwargs["auto_map"] = dict(AUTO_MAP)
        super().__post_init__(**kwargs)


__all__ = ["FlexQwenConfig"]
