"""Contrastive and clustering pre-training: MoCo v2, SimCLR, BYOL and SwAV around any encoder."""

# Entries of the state dicts beside `encoder.*`, which fine-tuning has no use for.
BESIDE_ENCODER = (
    'projector.',
    'predictor.',
    'prototypes.',
    'momentum_encoder.',
    'momentum_projector.',
    'queue.',
    'step',
)
