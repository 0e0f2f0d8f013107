"""``dsdiff export``: a model folder to hand over, with a model card and nothing of its patients."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli.arguments import add_output_argument, add_overwrite_argument, add_trust_argument
from ldm.cli.terminal import print_next, sampling_command

EXAMPLES = (
    "dsdiff export runs/mine --output model --licence CC-BY-4.0",
    "dsdiff export runs/mine --output model --onnx",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, metavar="RUN", help="run folder, or model.safetensors")
    add_output_argument(parser, "for the model")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, for the model card")
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="write the denoiser too, as denoiser.onnx and as denoiser.pt2 of torch.export, once "
        "both return what torch returns",
    )
    add_overwrite_argument(
        parser, "replace an exported model, but no README.md that you have changed"
    )
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export; say what was written."""
    from ldm.exporting.handover import CARD, CARD_BESIDE, export

    options = {name: getattr(args, name) for name in ("licence", "onnx", "overwrite", "trust")}
    folder = export(args.model, args.output, **options)
    more = ", denoiser.onnx, denoiser.pt2" if args.onnx else ""
    print(f"Written: {folder}/model.safetensors, config.yaml{more}")
    card = CARD_BESIDE if (folder / CARD_BESIDE).exists() else CARD
    print(f"  {card}: the model card; read it, and complete it")
    print_next(sampling_command(folder, args.trust))
    return 0
