"""Write docs/backbones.md and its pictures: ``python scripts/describe_backbones.py [FOLDER]``.

Everything comes from the YAML files in configs/backbone, the docstrings of the classes they name,
and the networks themselves; only the papers and what no docstring says stand here. A YAML whose
package is not installed is left out, with a line on stderr.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from ldm.config import config_root, load_config, read_yaml
from ldm.cost.network import count_flops, count_parameters
from ldm.errors import ConfigError
from ldm.plots.structure import trace
from ldm.plots.structure_picture import draw
from ldm.report.tables import markdown_table
from ldm.storage import write_file
from ldm.study import build_model
from ldm.util import get_obj_from_str

DOCS = Path(__file__).parents[1] / "docs"
ADAPTER = "ldm.modules.adapter.ForeignBackbone"
SIDE = 192  # pixels
SIZES = ("_tiny", "_small")  # endings of the YAML files that are another size of a backbone
# Millions of parameters that the research code reports for networks of the same name
REPORTED = {"unet": 18.5, "vit": 40.2, "dit": 45.8, "transformer": 120.0}
COLUMNS = ["backbone", "parameters", "GFLOP a call", "tiny: parameters", "tiny: GFLOP a call"]
COLUMNS += ["reported by the research code", "ours / reported"]
Costs = Mapping[str, tuple[int, float]]  # parameters and GFLOP by name of the YAML

PAPERS = {
    "unet": "Ho et al. 2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239); Dhariwal and "
    "Nichol 2021, [arXiv:2105.05233](https://arxiv.org/abs/2105.05233); Rombach et al. 2022, "
    "[arXiv:2112.10752](https://arxiv.org/abs/2112.10752)",
    "disc_unet": "Mao et al. 2023, [arXiv:2303.13933](https://arxiv.org/abs/2303.13933)",
    "ds_unet": "the DS-Diff research code that this repository succeeds",
    "dit": "Peebles and Xie 2023, [arXiv:2212.09748](https://arxiv.org/abs/2212.09748)",
    "vit": "Dosovitskiy et al. 2021, [arXiv:2010.11929](https://arxiv.org/abs/2010.11929); "
    "Bao et al. 2023, [arXiv:2209.12152](https://arxiv.org/abs/2209.12152)",
    "transformer": "Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762); "
    "Xiao et al. 2021, [arXiv:2106.14881](https://arxiv.org/abs/2106.14881)",
    "hybrid": "Chen et al. 2021, [arXiv:2102.04306](https://arxiv.org/abs/2102.04306), with the "
    "blocks of Peebles and Xie 2023, [arXiv:2212.09748](https://arxiv.org/abs/2212.09748)",
    "attention_unet": "Oktay et al. 2018, [arXiv:1804.03999](https://arxiv.org/abs/1804.03999)",
    "plain_unet": "Ronneberger et al. 2015, [arXiv:1505.04597](https://arxiv.org/abs/1505.04597)",
    "se_unet": "Hu et al. 2018, [arXiv:1709.01507](https://arxiv.org/abs/1709.01507)",
    "unet_transformer": "gates of Oktay et al. 2018, "
    "[arXiv:1804.03999](https://arxiv.org/abs/1804.03999), and blocks of Vaswani et al. 2017, "
    "[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)",
}
# Further sentences where neither docstring nor YAML says what distinguishes a backbone
REMARKS = {
    "unet": "Residual blocks that the timestep shifts, self-attention where the map is coarse, and "
    "one skip from every block of the encoder to its mirror in the decoder. It is the reference of "
    "the benchmark, and its blocks are those of the multi-stream networks and of the hybrid.",
    "ds_unet_crossattn": "The features are tokens that the middle looks up, in place of maps that "
    "are concatenated behind it; encoders and decoder are those of `ds_unet`.",
    "unet_crossattn": "The tokens are patches of the conditions. Each SpatialTransformer looks "
    "them up after its self-attention, so that every position sees all of the conditions.",
    "diffusers_unet": "The settings are those of `unet`, so that a difference in the benchmark is "
    "one of implementation. The adapter translates argument names and unwraps the output.",
    "monai_unet": "The settings are those of `unet`, so that a difference in the benchmark is one "
    "of implementation. The adapter translates argument names.",
    "smp_unet": "It takes no timestep: the adapter gives it as further channels of the input. The "
    "encoder halves the image at once and the decoder has few channels, so that a call is cheap.",
    "timm_vit": "All blocks have one width and one grid, and nothing skips them. The adapter turns "
    "tokens to pixels with a linear head.",
    "plain_unet": "Two convolutions a level, max pooling and concatenated skips: the baseline that "
    "shows what gates and attention add.",
    "se_unet": "Each block weighs its channels by what it sees in the whole image, so that the "
    "context is global at little cost.",
    "unet_transformer": "At the coarsest level every position attends to every other; the gates "
    "of the Attention U-Net stay.",
}

HEAD = """# Backbones

<!-- Written by scripts/describe_backbones.py: change the YAML files, the docstrings or the \
script, then run it. -->

A backbone is chosen by its YAML: `dsdiff train configs/backbone/NAME.yaml data.params.root=...`. \
Parameters, FLOPs and pictures below are computed from the networks that these files build: \
{side} x {side} pixels, batch 1, three conditions, pixel space. A multiply-add counts as 2 FLOPs; \
attention counts as its two matrix products. `tiny` files are for tests and laptops.

{table}
"Reported by the research code" are the counts published with it. Its exact settings are not \
known here, so the networks of the same name are of the same kind and about the same size, not \
the same; the last column is our count divided by the reported one.

In the pictures the data flow from left to right and the resolution falls downwards. A box is a \
block; its width hints at channels, its height at resolution, and `96 @ 48×48` below it gives \
both for its output. Lines over the boxes are skips; parallel streams stand below each other.
"""


@dataclass(frozen=True)
class Backbone:
    """A shipped YAML: its name, that of its base, its text, and what it says of the model."""

    name: str
    base: str
    text: str
    own: Mapping[str, Any]

    def main(self) -> bool:
        """Whether it has a section of its own, and is not another size of a backbone."""
        return not self.name.endswith(SIZES)

    def build(self) -> tuple[nn.Module, tuple, list[str]]:
        """Return the network with its wrapper, a blank call of it, and the contrasts it sees."""
        size = f"data.params.image_size={SIDE}"
        config = load_config([f"configs/backbone/{self.name}.yaml"], [size])
        model = build_model(config)
        return model.network, tuple(model.network_inputs()), list(model.conditions)


def shipped() -> dict[str, Backbone]:
    """Return the shipped backbones by name, those of other packages last."""
    found = []
    for file in sorted((config_root() / "backbone").glob("*.yaml")):
        text, own = file.read_text(encoding="utf-8"), dict(read_yaml(file))
        params = own.get("model", {}).get("params", {})
        found.append(Backbone(file.stem, Path(own["base"]).stem, text, params))
    found.sort(key=lambda backbone: ADAPTER in backbone.text)
    return {backbone.name: backbone for backbone in found}


def cost(network: nn.Module, inputs: tuple) -> tuple[int, float]:
    """Return parameters, and FLOPs of one call in units of 1e9."""
    return count_parameters(network), count_flops(network, *inputs) / 1e9


def in_words(cls: type) -> str:
    """Return what the docstring of a class says before its arguments, without its interface."""
    text = inspect.cleandoc(cls.__doc__).partition("Args:")[0]
    kept = []
    for paragraph in (" ".join(part.split()) for part in text.split("\n\n")):
        if paragraph.startswith("``forward"):  # what follows the interface, if anything
            paragraph = "".join(re.findall(r"(?:What distinguishes it:|Unlike ).*", paragraph))
        kept += [s for s in re.split(r"(?<=[.]) (?=[A-Z`])", paragraph) if s.endswith(".")]
    plain = " ".join(s for s in kept if not s.startswith(("- ", "``forward")))
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", plain).replace("``", "`")


def yaml_lines(backbone: Backbone) -> str:
    """Return what the YAML says of the model, moved to the left margin."""
    return textwrap.dedent(backbone.text.split("model:\n  params:\n")[1]).strip()


def cost_in_words(name: str, parameters: int, gflops: float) -> str:
    """Return ``configs/backbone/NAME.yaml``, its parameters and its FLOPs as a list item."""
    return (
        f"- `configs/backbone/{name}.yaml`: {parameters:,} parameters, {gflops:,.1f} GFLOP a call"
    )


def section(backbone: Backbone, backbones: Mapping[str, Backbone], costs: Costs) -> str:
    """Return the section of a backbone: source, words, picture, cost, YAML."""
    target = backbone.own["unet_config"].get("target")
    words = [backbone.text.partition("base:")[0].replace("# ", "").replace("\n", " ").strip()]
    source = PAPERS.get(backbone.name) or PAPERS.get(backbone.base)
    if target == ADAPTER:
        network = backbone.own["unet_config"]["params"]["network"]["target"]
        package = network.partition(".")[0]
        source = f"`{network}` of {package} {version(package)}"
    elif target:
        words.append(in_words(get_obj_from_str(target)))
    words.append(REMARKS.get(backbone.name, ""))
    sizes = [b.name for b in backbones.values() if b.base == backbone.name and not b.main()]
    heading = "###" if backbone.base in backbones else "##"
    parts = [
        f"{heading} {backbone.name}",
        " ".join(filter(None, words)),
        f"Source: {source or 'the docstring of the class'}.",
        f"![Structure of {backbone.name}](images/backbones/{backbone.name}.svg)",
        "\n".join(cost_in_words(n, *costs[n]) for n in (backbone.name, *sizes) if n in costs),
        f"What its YAML says, and one would change:\n\n```yaml\n{yaml_lines(backbone)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def summary(backbones: Mapping[str, Backbone], costs: Costs) -> str:
    """Return the table of all backbones."""
    rows = []
    for name in (n for n in in_order(backbones) if n in costs):
        parameters, gflops = costs[name]
        tiny = costs.get(f"{name}_tiny", ("", ""))
        reported = REPORTED.get(name)
        ratio = f"{parameters / reported / 1e6:.2f}" if reported else ""
        known = f"{reported:g} M" if reported else ""
        rows.append([f"[{name}](#{name})", parameters, gflops, *tiny, known, ratio])
    return markdown_table(COLUMNS, rows)


def in_order(backbones: Mapping[str, Backbone]) -> list[str]:
    """Return the names of those with a section, each variant behind its base."""
    mains = [backbone for backbone in backbones.values() if backbone.main()]
    families = [backbone for backbone in mains if backbone.base not in backbones]
    return [
        b.name
        for family in families
        for b in (family, *(m for m in mains if m.base == family.name))
    ]


def main(folder: Path = DOCS) -> int:
    """Write the page and the pictures into ``folder``."""
    backbones, costs = shipped(), {}
    for backbone in backbones.values():
        try:
            network, inputs, contrasts = backbone.build()
        except ConfigError as error:
            sys.stderr.write(f"{backbone.name} is left out: {error}\n")
            continue
        costs[backbone.name] = cost(network, inputs)
        if backbone.main():
            names = ["noisy"] * inputs[0].shape[1] + [contrast.upper() for contrast in contrasts]
            picture = draw(trace(network, *inputs), names)
            write_file(folder / "images" / "backbones" / f"{backbone.name}.svg", picture)
    names = [name for name in in_order(backbones) if name in costs]
    sections = [section(backbones[name], backbones, costs) for name in names]
    page = [HEAD.format(table=summary(backbones, costs), side=SIDE), *sections]
    write_file(folder / "backbones.md", "\n".join(page))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
