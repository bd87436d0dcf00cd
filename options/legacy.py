"""Keys of SimMIM that are still accepted."""

# Keys with their replacements; None: the key has no effect. An encoder's IN_CHANS only has an
# effect if MODEL.TYPE selects the encoder.
LEGACY_KEYS = {
    'MODEL.SWIN.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.VIT.IN_CHANS': 'MODEL.IN_CHANS',
    'LOCAL_RANK': None,
}
