"""The tokenizer and the frozen word embeddings of the bundled checkpoints.

Words that matter are one token each and get orthonormal embeddings, so that a visual token can be the sum of the words
true of its cell and still be read back exactly. Coordinates get random Fourier features of their value (Rahimi & Recht,
"Random features for large-scale kernel machines", 2007): the mean of several places reads as the place between them.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlmopt.synthetic import scene, screen
from vlmopt.synthetic.words import COORDINATES, FIRST_SLOT, MAX_COUNT, SECOND_SLOT, SIDES, THEMES

PAD, END, USER, ASSISTANT = "<|endoftext|>", "<|im_end|>", "<|user|>", "<|assistant|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, END, USER, ASSISTANT, VISION_START, VISION_END, IMAGE, VIDEO)
VOCABULARY = 704
FAR = 14.0  # pixels; coordinates this far apart have similarity exp(-1/2)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(images: int = 300) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the generated questions and answers; raise if a word that matters is not one token."""
    corpus = [
        text
        for seed in range(images)
        for world in (scene(seed), screen(seed))
        for question in world.questions
        for text in (question.text, question.answer)
    ]
    words = [*FIRST_SLOT, *SECOND_SLOT, *SIDES, *THEMES, "yes", "no", *map(str, range(MAX_COUNT + 1))]
    corpus += [" ".join(words)] * 50 + [f"({x}, {x})" for x in COORDINATES for _ in range(50)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
    )
    for word in words:
        word_id(tokenizer, word)
    for value in COORDINATES:
        coordinate_ids(tokenizer, value)
    return tokenizer


def word_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """Return the one token of a word after a space (which every segment starts with)."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens; raise VOCABULARY above {VOCABULARY}")
    return int(ids[0])


def coordinate_ids(tokenizer: PreTrainedTokenizerFast, value: int) -> tuple[int, int]:
    """Return the tokens of a number as x (after the bracket) and as y (after the space)."""
    ids = tokenizer(f"({value}, {value})", add_special_tokens=False)["input_ids"]
    if len(ids) != 5:
        raise ValueError(f"({value}, {value}) is {len(ids)} tokens instead of 5; raise VOCABULARY above {VOCABULARY}")
    return ids[1], ids[3]


def embedding_table(tokenizer: PreTrainedTokenizerFast, hidden: int, seed: int) -> torch.Tensor:
    """Return unit-norm word embeddings [vocabulary, hidden]: orthonormal words, smooth coordinates, random rest."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(len(tokenizer), hidden, generator=random)
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=random)).Q
    words = dict.fromkeys(
        [*map(tokenizer.convert_tokens_to_ids, SPECIAL)]
        + [word_id(tokenizer, word) for word in [*FIRST_SLOT, *SECOND_SLOT, *SIDES, *THEMES, "yes", "no"]]
        + [word_id(tokenizer, str(number)) for number in range(7)]
    )
    features = 2 * 16
    if len(words) + 2 * features > hidden:
        raise ValueError(f"{len(words)} words and {2 * features} coordinate features need hidden > {hidden}")
    table[list(words)] = basis[: len(words)]
    frequencies = torch.randn(features // 2, generator=random) / FAR
    for axis in (0, 1):
        plane = basis[len(words) + axis * features :][:features]
        for value in COORDINATES:
            angle = value * frequencies
            table[coordinate_ids(tokenizer, value)[axis]] = torch.cat([angle.cos(), angle.sin()]) @ plane
    return torch.nn.functional.normalize(table, dim=1)
