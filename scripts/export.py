"""Export a checkpoint for other programs. Not for clinical use.

python scripts/export.py CHECKPOINT --to timm --output PATH.safetensors

--to timm           .safetensors: weights under timm's names; the header says how timm builds it
--to huggingface    a folder that transformers loads without this project's code
--to onnx           .onnx: from images [B, C, S, S] to logits, or to an encoder's tokens or features
--to torch_export   .pt2: the same as a program of torch.export

The outputs of the export are compared with the checkpoint's before the file gets its name.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.export import FORMATS, export, load_source


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', metavar='CHECKPOINT', help='checkpoint of any of the mains')
    add('--to', required=True, choices=FORMATS, help='format')
    add('--output', required=True, type=Path, metavar='PATH', help='file, or folder (huggingface)')
    add('--overwrite', action='store_true', help='replace an existing export')
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> int:
    logging.getLogger('onnxscript').setLevel(logging.ERROR)  # it warns about every simplification
    try:
        source = load_source(args.checkpoint, logging.getLogger('export'))
        worst = export(source, args.to, args.output, overwrite=args.overwrite)
    except (ValueError, OSError, RuntimeError) as error:  # PyTorch cannot trace every model
        print(f'error: {error}', file=sys.stderr)
        return 2
    what = f'{len(source.outputs)} logits' if source.outputs else source.gives
    print(f'{args.output}: {what}, within {worst:.1e} of the checkpoint.')
    print('Not for clinical use.')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
