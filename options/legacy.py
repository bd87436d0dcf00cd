"""Keys of SimMIM and values of earlier versions that are still accepted."""

# Keys of SimMIM that are still accepted, with their replacements; None: the key has no effect. An
# encoder's IN_CHANS only has an effect if MODEL.TYPE selects the encoder.
LEGACY_KEYS = {
    'MODEL.SWIN.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.VIT.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.TIMM.IN_CHANS': 'MODEL.IN_CHANS',
    'LOCAL_RANK': None,
}


# Values that earlier versions wrote, as text, with the values that replace them.
EARLIER_VALUES = {
    'AMP_ON_CPU': {'True': 'always', 'False': 'never'},
    'DATA.PREPROCESS': {'none': []},
    'TRAIN.COMPILE': {'max': 'auto'},
}
