"""From what a caller hands in to token ids, and to a batch with its scored positions."""

from krs.prompts.answers import Answer, encode_answers, end_of_answer
from krs.prompts.batch import Scoring, TokenBatch, check_aligned, check_reach, next_token_batch, paper_code_batch
from krs.prompts.checks import Prompt, Prompts, check_messages, check_prompt, check_prompts, check_strings, is_chat
from krs.prompts.encode import decode, encode, needs_tokenizer, pieces
from krs.prompts.listed import listed
from krs.prompts.notes import answer_notes, bare_texts, prompt_notes
from krs.prompts.rows import Ids
from krs.prompts.subjects import check_subjects, subject_positions
from krs.prompts.tokens import check_template_arguments, prompt_length, tokenise, with_template_arguments

__all__ = [
    "Answer",
    "Ids",
    "Prompt",
    "Prompts",
    "Scoring",
    "TokenBatch",
    "answer_notes",
    "bare_texts",
    "check_aligned",
    "check_messages",
    "check_prompt",
    "check_prompts",
    "check_reach",
    "check_strings",
    "check_subjects",
    "check_template_arguments",
    "decode",
    "encode",
    "encode_answers",
    "end_of_answer",
    "is_chat",
    "listed",
    "needs_tokenizer",
    "next_token_batch",
    "paper_code_batch",
    "pieces",
    "prompt_length",
    "prompt_notes",
    "subject_positions",
    "tokenise",
    "with_template_arguments",
]
