"""The tiny tokenizer with special tokens around a text, as several models' tokenizers have them."""

from tokenizers.processors import TemplateProcessing

from tests.unlearn.tiny_tokenizer import tiny_tokenizer

CHAT = (
    "<s>{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% if m['role'] == 'assistant' %}three {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant {{ 'blue' if enable_thinking else 'green' }}{% endif %}"
)
"""It begins with the BOS, ends an assistant's turn with the token "three", and takes an argument."""


def tokenizer_with(around="<s> $A", template=CHAT):
    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=[("<s>", 0), ("</s>", 1)])
    made.chat_template = template
    return made
