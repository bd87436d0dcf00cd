"""Further methods of saliency maps, a file each: attention rollout and occlusion.

In: a trained model, images and a label. Out: maps of cells. Read `method.py` first. Grad-CAM and
the attention of a head are in `evaluation/saliency.py`.
"""

AUTO = 'auto'  # the attention of a head that has one, and otherwise Grad-CAM
# To add a method, write one file with a `method.MapMethod`, and its line here.
METHODS = {
    'grad-cam': 'evaluation.saliency:GRAD_CAM',
    'attention': 'evaluation.saliency:HEAD_ATTENTION',
    'rollout': 'evaluation.maps.rollout:ROLLOUT',
    'occlusion': 'evaluation.maps.occlusion:OCCLUSION',
}
