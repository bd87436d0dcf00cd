"""Further methods of saliency maps, a file each: attention rollout and occlusion.

In: a trained model, images and a label. Out: maps of cells. Read `evaluation/saliency.py` first,
which has Grad-CAM and the attention of a head.
"""

AUTO = 'auto'  # the attention of a head that has one, and otherwise Grad-CAM
# To add a method, write one file with a `saliency.MapMethod`, and its line here.
METHODS = {
    'grad-cam': 'evaluation.saliency:GRAD_CAM',
    'attention': 'evaluation.saliency:HEAD_ATTENTION',
    'rollout': 'evaluation.maps.rollout:ROLLOUT',
    'occlusion': 'evaluation.maps.occlusion:OCCLUSION',
}
