"""A real `tokenizers` tokenizer over a handful of words, for tiny models."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TEXT = "the a an who what wrote is was book cat dog sun moon red blue green one two three sat ran on in of and"
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Some thirty words, EOS as the pad, and a chat template."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "user": 3, "assistant": 4}
    vocabulary |= {word: i + 5 for i, word in enumerate(_TEXT.split())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
