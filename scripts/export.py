"""Write a checkpoint for other programs; not for clinical use.

python scripts/export.py CHECKPOINT --to timm --output PATH.safetensors

--to timm           .safetensors: weights under timm's names; the header says how timm builds it
--to huggingface    a folder that transformers loads without this project's code
--to onnx           .onnx: images [B, C, S, S] to logits; of an encoder to tokens or features
--to torch_export   .pt2: the same as a program of torch.export

The outputs of what was written are compared with the checkpoint's before it takes its name.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.export import load_source, write_huggingface, write_onnx, write_timm, write_torch_export

FORMATS: dict[str, Callable] = {
    'timm': write_timm,
    'huggingface': write_huggingface,
    'onnx': write_onnx,
    'torch_export': write_torch_export,
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', metavar='CHECKPOINT', help='of any of the mains')
    add('--to', required=True, choices=FORMATS, help='what is written')
    add('--output', required=True, type=Path, metavar='PATH', help='file, or folder (huggingface)')
    add('--overwrite', action='store_true', help='replace an export that is there')
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> int:
    logging.getLogger('onnxscript').setLevel(logging.ERROR)  # warns of what it cannot simplify
    try:
        source = load_source(args.checkpoint, logging.getLogger('export'))
        worst = FORMATS[args.to](source, args.output, overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    what = f'{len(source.outputs)} logits' if source.outputs else source.gives
    print(f'{args.output}: {what}, at most {worst:.1e} from those of the checkpoint.')
    print('Not for clinical use.')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
