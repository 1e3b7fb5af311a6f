"""Published configurations: the fields that sizes follow from."""

COGVIDEOX_5B = {
    "num_layers": 42,
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "patch_size_t": None,
    "sample_height": 60,
    "sample_width": 90,
    "sample_frames": 49,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "max_text_seq_length": 226,
}
