import subprocess
import sys

import torch
from transformers import T5Tokenizer

from cogedit.lab import components, world


def tokens(text, tokenizer):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_every_caption_is_made_of_known_words_and_fits(tmp_path):
    components.make_tokenizer().save_pretrained(tmp_path)
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    table = components.vocabulary()
    for seed in range(100):
        for length in world.CAPTION_LENGTHS:
            caption = world.caption(world.sample_spec(seed), length)
            ids = tokenizer(caption).input_ids
            assert len(ids) == len(caption.split()) + 1 <= components.MAX_TEXT_SEQ_LENGTH
            assert tokenizer.unk_token_id not in ids
            assert all(
                list(table)[index].lstrip("\u2581") in (*caption.split(), "</s>") for index in ids
            )


def test_capitals_punctuation_and_synonyms_mean_the_same():
    tokenizer = components.make_tokenizer()
    encoder = components.make_text_encoder().eval()
    components.share_embeddings(encoder)
    plain, other, unknown = (
        tokenizer(text, padding="max_length", max_length=12, return_tensors="pt").input_ids
        for text in (
            "a purple circle on a gray background",
            "A VIOLET ball on a grey background.",
            "a purple circle on a gray dog",
        )
    )
    assert (plain != other).any()
    with torch.no_grad():
        torch.testing.assert_close(encoder(plain)[0], encoder(other)[0])
        assert (encoder(plain)[0] - encoder(unknown)[0]).abs().max() > 1e-3


def test_unknown_words_are_unknown():
    tokenizer = components.make_tokenizer()
    assert "<unk>" in tokens("a zebra", tokenizer)


def test_asking_for_the_folder_loads_no_torch():
    code = "import sys, cogedit.shapes as s; s.model_dir(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
