"""Read weights of other models and stages, and export those of this project.

In: a checkpoint of this project, SimMIM, MAE, timm or transformers. Out: the weights under the
names of a model, or files for other programs. Read `pretrained.py` first.
"""
