"""Small configs of transformers, of the same sizes as those of `transfers.make_config`."""


def swin_config(transformers, channels: int = 1, **options: object):
    return transformers.SwinConfig(
        image_size=32, patch_size=4, num_channels=channels, embed_dim=16, depths=[2, 1],
        num_heads=[2, 4], window_size=4, encoder_stride=8, **options,
    )  # fmt: skip


def vit_config(kind, channels: int = 1, **options: object):
    sizes = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
    sizes |= {'intermediate_size': 128, 'image_size': 32, 'patch_size': 8, 'encoder_stride': 8}
    return kind(num_channels=channels, **(sizes | options))
