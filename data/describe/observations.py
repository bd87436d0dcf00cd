"""What CheXpert's observations mean on a chest X-ray, in a sentence each.

Sources: Hansell et al. 2008, Fleischner Society glossary, Radiology 246(3), whose terms CheXpert
uses where it has them; Irvin et al. 2019, arXiv:1901.07031, for what a label covers.
"""

SOURCE = (
    'After Hansell et al. 2008 (Fleischner Society glossary, Radiology 246(3)) and Irvin et al. '
    '2019 (arXiv:1901.07031).'
)
MEANINGS = {
    'No Finding': 'None of the other observations but support devices.',
    'Enlarged Cardiomediastinum': 'The shadow of heart and mediastinum is too wide.',
    'Cardiomegaly': 'The shadow of the heart is too large.',
    'Lung Opacity': 'An area of the lung is whiter than its surroundings.',
    'Lung Lesion': 'A nodule or a mass in the lung.',
    'Edema': 'Fluid in the tissue and the air spaces of the lung.',
    'Consolidation': 'Fluid or cells replace the air and hide the vessels.',
    'Pneumonia': 'Inflammation of the lung, usually an infection.',
    'Atelectasis': 'A part of the lung has less air and a smaller volume.',
    'Pneumothorax': 'Air in the pleural space, beside the lung.',
    'Pleural Effusion': 'Fluid in the pleural space.',
    'Pleural Other': 'Another change of the pleura, such as thickening or plaques.',
    'Fracture': 'A broken bone, such as a rib.',
    'Support Devices': 'Tubes, lines, pacemakers and other devices.',
}
