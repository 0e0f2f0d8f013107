"""Structures of networks whose data flow is known, and the page that is made from them."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from ldm.errors import ConfigError
from ldm.plots.structure import INPUT, trace
from ldm.plots.structure_picture import draw

REPO = Path(__file__).parents[1]
PAGE = REPO / "docs" / "backbones.md"
PICTURES = REPO / "docs" / "images" / "backbones"
SCRIPT = runpy.run_path(str(REPO / "scripts" / "describe_backbones.py"))
BACKBONES = SCRIPT["shipped"]()
IMAGE = torch.zeros(1, 2, 16, 16)


class LittleUNet(nn.Module):
    """Skip around a down- and an upsampling; norms, activations and pooling by functions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x):
        skip = torch.relu(self.norm(self.stem(x)))
        return self.out(torch.cat([self.up(self.down(skip)), skip], dim=1))


class Streams(nn.Module):
    """One layer for each channel, and one that gets what it does not use."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1, 4, 1) for _ in range(2))
        self.join = Ignoring()

    def forward(self, x):
        first, second = (layer(c) for layer, c in zip(self.layers, x.split(1, 1), strict=True))
        return self.join(second, first)


class Ignoring(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x, ignored):
        return self.conv(x)


class Repeating(nn.Module):
    """Calls one pooling layer three times, and looks at values if asked."""

    def __init__(self, looks=False):
        super().__init__()
        self.pool, self.looks = nn.MaxPool2d(2), looks
        self.noise, self.out = nn.Dropout(), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        if self.looks and x.sum().item() < 0:
            return x
        return self.out(self.noise(self.pool(self.pool(self.pool(x)))))


def texts(svg):
    """The words of a picture, in order: labels are text, not outlines of letters."""
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]


def built(name):
    """Network, inputs and contrasts of a shipped backbone; skip if its package is absent."""
    try:
        return BACKBONES[name].build()
    except ConfigError as error:
        if error.code == "CONFIG-TARGET" and "no module" in str(error):
            pytest.skip(str(error))
        raise


def traced(name):
    network, inputs, _ = built(name)
    return trace(network, *inputs).blocks


def test_skip_is_found_through_norm_activation_and_concatenation():
    structure = trace(LittleUNet(), IMAGE)
    stem, down, up, out = structure.blocks
    assert [b.path for b in structure.blocks] == ["stem", "down", "up", "out"]
    assert [b.sources for b in structure.blocks] == [(INPUT,), (0,), (1,), (0, 2)]
    assert structure.outputs == (3,)
    assert (down.channels, down.size) == (16, (8, 8))
    assert (up.channels, up.size) == (8, (16, 16))
    assert down.kind == up.kind == "down- or upsampling" != stem.kind == out.kind


def test_streams_know_their_channels_and_unused_arguments_are_no_source():
    first, second, join = trace(Streams(), IMAGE).blocks
    assert (first.reads, second.reads) == ((0,), (1,))
    assert join.sources == (1,)


def test_every_call_of_a_shared_layer_is_a_block():
    blocks = trace(Repeating(), IMAGE).blocks
    assert [b.path for b in blocks] == ["pool", "pool", "pool", "out"]
    assert [b.size for b in blocks] == [(8, 8), (4, 4), (2, 2), (2, 2)]


def test_network_that_looks_at_values_has_the_same_structure():
    assert trace(Repeating(looks=True), IMAGE) == trace(Repeating(), IMAGE)


def test_tracing_leaves_the_network_and_the_random_numbers_as_they_were():
    network = nn.Sequential(LittleUNet(), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    trace(network, IMAGE)
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )
    assert all(parameter.grad is None for parameter in network.parameters())


def test_network_on_the_meta_device_can_be_traced():
    with torch.device("meta"):
        network = LittleUNet()
    assert trace(network, IMAGE).blocks[3].sources == (0, 2)


def test_every_block_of_the_unet_decoder_joins_its_mirror():
    blocks = traced("unet_tiny")
    encoder = [i for i, b in enumerate(blocks) if "input_blocks" in b.path]
    joined = [
        [source for source in block.sources if source in encoder]
        for block in blocks
        if "output_blocks" in block.path and block.kind == "residual block"
    ]
    # each takes one skip, and they are taken in the reverse order
    assert all(len(sources) == 1 for sources in joined)
    assert joined == sorted(joined, reverse=True)
    assert [blocks[sources[0]].size for sources in joined] == [
        b.size for i, b in enumerate(blocks) if i in {s for j in joined for s in j}
    ][::-1]


def test_four_streams_of_ds_diff_meet_in_the_heads():
    blocks = traced("ds_unet_tiny")
    stems = [i for i, block in enumerate(blocks) if INPUT in block.sources]
    assert [blocks[i].reads for i in stems] == [(0,), (1,), (2,), (3,)]

    def stems_of(place):
        block = blocks[place]
        return {place} & set(stems) or set().union(*(stems_of(s) for s in block.sources))

    heads = {b.path.rpartition(".")[2]: b for b in blocks if b.kind == "feature head"}
    reached = {
        name: {stems.index(stem) for source in head.sources for stem in stems_of(source)}
        for name, head in heads.items()
    }
    assert reached == {
        "conv_style": {1, 2, 3},
        "conv_content": {1, 2, 3},
        "conv_anatomy": {1, 2},
        "conv_lesion": {2, 3},
    }


def test_timestep_modulates_every_block_of_dit_and_is_one_token_of_vit():
    for name, count in (("dit_tiny", 4 + 1), ("vit_tiny", 1)):  # DiT: also the last layer
        blocks = traced(name)
        embedding = next(i for i, block in enumerate(blocks) if block.kind == "embedding")
        assert sum(embedding in block.sources for block in blocks) == count


def test_long_skips_of_vit_join_block_i_and_block_minus_i():
    blocks = traced("vit_tiny")
    first, *_, last = (i for i, b in enumerate(blocks) if b.kind == "attention or transformer")
    for offset in range((last - first) // 2):
        assert blocks[last - offset].sources == (first + offset, last - offset - 1)


def test_picture_is_text_and_the_same_every_time():
    structure = trace(LittleUNet(), IMAGE)
    svg = draw(structure, ("noisy", "T1"))
    assert svg == draw(structure, ("noisy", "T1"))
    words = texts(svg)
    assert {"noisy", "T1", "output", "8 @ 16×16", "16 @ 8×8"} <= set(words)
    assert "down- or upsampling" in words and "attention or transformer" not in words
    assert b"<dc:date>" not in svg
    assert draw(structure).to("png").startswith(b"\x89PNG")


def test_runs_of_equal_blocks_are_one_box():
    layers = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)) for _ in range(7)]
    words = texts(draw(trace(nn.Sequential(*layers, nn.Conv2d(2, 1, 1)), IMAGE)))
    assert "× 7" in words


def test_every_backbone_has_a_section_a_picture_and_a_row():
    page = PAGE.read_text(encoding="utf-8")
    for name in (name for name, backbone in BACKBONES.items() if backbone.main()):
        assert re.search(rf"^##+ {name}$", page, re.MULTILINE), f"run the script: no {name}"
        assert f"](images/backbones/{name}.svg)" in page
        assert f"| [{name}](#{name}) |" in page
        assert texts((PICTURES / f"{name}.svg").read_bytes())


def test_page_gives_the_cost_that_the_networks_have():
    """Of every tiny YAML and one at paper size; scripts/describe_backbones.py writes the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for name in [*(n for n in BACKBONES if n.endswith("_tiny")), "unet"]:
        network, inputs, _ = built(name)
        assert SCRIPT["cost_in_words"](name, *SCRIPT["cost"](network, inputs)) in lines


@pytest.mark.parametrize("name", ["unet", "dit", "vit"])
def test_picture_on_the_page_shows_the_network_as_it_is(name):
    network, inputs, contrasts = built(name)
    names = ["noisy", *(contrast.upper() for contrast in contrasts)]
    shown = texts((PICTURES / f"{name}.svg").read_bytes())
    assert shown == texts(draw(trace(network, *inputs), names))
