"""Export a checkpoint for others. Not for clinical use.

python scripts/export.py CHECKPOINT --to timm --output FOLDER [--push OWNER/NAME]

--to safetensors    .safetensors: a small file that this project reads like the checkpoint
--to timm           folder that timm and transformers load without this project's code
--to onnx           .onnx: images [B, C, S, S] to logits, or to the tokens or features of an encoder
--to torch_export   .pt2: the same as a torch.export program

The export is only saved if its outputs agree with the outputs of the checkpoint.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from system.tool import Paragraphs, tool


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('checkpoint', metavar='CHECKPOINT', help='checkpoint of any main script')
    formats = ('safetensors', 'timm', 'onnx', 'torch_export')
    add('--to', required=True, choices=formats, help='format of the export')
    add('--output', required=True, type=Path, metavar='PATH', help='file, or folder (timm)')
    add('--overwrite', action='store_true', help='replace an existing export')
    add('--push', metavar='OWNER/NAME', help='upload the folder of --to timm to Hugging Face; '
        'a new repository is private')  # fmt: skip
    args = parser.parse_args(arguments)
    if args.push and args.to != 'timm':
        parser.error('--push needs --to timm')
    return args


if __name__ == '__main__':
    parse_args()  # answers --help and wrong flags before the imports below, which take seconds

from models.weights.export import export, load_trained_model, push

RESTRICTED = (
    'Keep it private unless the licence of the training images allows to publish weights: CheXpert '
    'and MIMIC-CXR restrict it.'
)


@tool
def main(args: argparse.Namespace) -> int:
    # onnxscript warns about every simplification.
    logging.getLogger('onnxscript').setLevel(logging.ERROR)
    source = load_trained_model(args.checkpoint, logging.getLogger('export'))
    try:
        worst = export(source, args.to, args.output, overwrite=args.overwrite)
    except RuntimeError as error:  # PyTorch cannot trace every model
        raise ValueError(str(error)) from error
    outputs = f'{len(source.outputs)} logits' if source.outputs else source.gives
    print(f'{args.output}: {outputs}, at most {worst:.1e} from the checkpoint.')
    if args.push:
        address = push(args.output, args.push)
        print(f'{address}: uploaded. {RESTRICTED}')
    print('Not for clinical use.')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
