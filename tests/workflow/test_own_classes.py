"""Classes of a user that fail are told in one line before a patient is read, at both doors."""

import sys

import pytest
from safetensors.torch import load_file
from workflow.conftest import SPLIT

import ldm
from ldm.checkpoint import newest_checkpoint, step_of
from ldm.cli.main import main
from ldm.errors import ConfigError, DataError, OutOfMemory, calling, of_foreign_code
from ldm.storage import sha256

YAML = """base: configs/base.yaml
model: {params: {unet_config: {target: own_classes.Net}, sampling_steps: 2}}
data: {params: {image_size: 32, batch_size: 2, augmentation_config: null, val_slices: 2}}
lightning:
  trainer: {max_steps: 2, log_every_n_steps: 1, accelerator: cpu, precision: "32"}
  callbacks: {curve: null}
"""
# a class of each kind that does what it should; FAULTS puts other code in the place of one method
SEGMENTATION = [
    "configs/segmentation/attention_unet_tiny.yaml",
    "data.params.image_size=32",
    "model.params.loss_config={target: TARGET, params: null}",
]
CLASSES = """
import dataclasses
import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from ldm.data.layouts import Layout
from ldm.data.normalise import Normaliser
from ldm.models.diffusion.anchors import Anchor
from ldm.models.diffusion.schedule import Schedule


class Net(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.enter = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, out_channels, 3, padding=1)

    def denoised(self, x):
        return self.leave(torch.relu(self.enter(x)))

    def forward(self, x, timesteps, context=None, y=None):
        return self.denoised(x)


class NetOfY(Net):
    def __init__(self, in_channels, out_channels, adm_in_channels):
        super().__init__(in_channels, out_channels)
        self.told = nn.Linear(adm_in_channels, out_channels)

    def forward(self, x, timesteps, context=None, y=None):
        return self.denoised(x) + self.told(y)[:, :, None, None]


class Strided(Net):
    # of sizes that 2 divides, which it does not say
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.enter = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)

    def forward(self, x, timesteps, context=None, y=None):
        return self.leave(nn.functional.interpolate(self.enter(x), scale_factor=2)) + x[:, :1]


class Numpy(Net):
    def forward(self, x, timesteps, context=None, y=None):
        return self.denoised(x) * float(np.abs(x.numpy()).max())


class Loss(nn.Module):
    def forward(self, prediction):
        return {"own": prediction.x_0.abs().mean(), "nothing": 0.0}


class Style(nn.Module):
    width = 8

    def __init__(self, in_channels):
        super().__init__()
        self.layer = nn.Linear(in_channels, 8)

    def forward(self, condition):
        return self.layer(condition.mean((2, 3)))


class Intensity(Normaliser):
    def measure(self, values, contrast):
        return float(values.mean()), float(values.std())


class Flip:
    def set_random_state(self, seed):
        pass

    def __call__(self, images):
        return {name: image.flip(-1) for name, image in images.items()}


class T1(Anchor):
    def forward(self, condition, presence):
        return condition[:, :1]


class Weight(nn.Module):
    def forward(self, batch, means):
        return torch.ones_like(batch["target"])


class Stage(nn.Module):
    latent_channels = downsampling = 1

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents


class Steps:
    def __init__(self, timesteps):
        self.timesteps = timesteps

    def draw(self, uniform):
        return (uniform * self.timesteps).long(), torch.ones(len(uniform))

    def update(self, t, loss):
        pass

    def state_dict(self):
        return {}


class Knows(nn.Module):
    # a prior: what it says of a patient is brighter by a share of the training's intensities
    def __init__(self):
        super().__init__()
        self.register_buffer("share", torch.zeros(()))

    def fit(self, data):
        self.share.fill_(0.01)

    def forward(self, image, condition, presence, factor, sampled=False, asked=None, maps=None):
        return image + factor * self.share * (1 if maps is None else maps[:, :1])

    def maps(self, volume, aspect):
        return volume[:, :1].clamp(min=0)

    def doubt(self, maps, presence, asked, factor):
        return maps[:, 0].square()


@dataclasses.dataclass(frozen=True)
class Line(Schedule):
    timesteps: int = 100

    def sigma(self, t):
        return (t.double() + 1) / (self.timesteps + 1)

    def alpha(self, t):
        return 1 - self.sigma(t)

    def timestep_of(self, half_log_snr):
        return (self.timesteps + 1) / (1 + half_log_snr.exp()) - 1


class Hospital(Layout):
    def parse(self, path):
        subject, _, contrast = path.name.removesuffix(".nii.gz").rpartition("_")
        return subject, contrast


class Watch(Callback):
    def state_dict(self):
        return {"seen": [1, 2.0, "three", torch.ones(3)]}


class Descent(torch.optim.SGD):
    pass
"""
PLACES = {
    "Net": ["model.params.unet_config={target: TARGET}"],
    "Numpy": ["model.params.unet_config={target: TARGET}"],
    "Loss": ["model.params.loss_config.own={target: TARGET}"],
    "Style": [
        "model.params.cond_stage_config={target: TARGET}",
        "model.params.conditioning_key=concat-adm",
        "model.params.unet_config.target=own_classes.NetOfY",
    ],
    "Intensity": ["data.params.normaliser_config={target: TARGET}"],
    "Flip": ["data.params.augmentation_config={target: TARGET}"],
    "T1": ["model.params.anchor_config={target: TARGET}"],
    "Weight": ["model.params.voxel_weight_config={target: TARGET}"],
    "Stage": ["model.params.first_stage_config={target: TARGET}"],
    "Steps": ["model.params.timesteps_config={target: TARGET}"],
    "Knows": [
        "model.params.prior_config={target: TARGET}",
        "model.params.mean_share=auto",
        "model.params.spread=1",
    ],
    "Line": ["model.params.schedule_config={target: TARGET, params: null}"],
    "Watch": ["lightning.callbacks.own={target: TARGET}"],
    "Descent": ["model.params.optimizer_config={target: TARGET, params: {lr: 1.e-3}}"],
    "Hospital": ["data.params.layout={target: TARGET}"],
}
NET, LOSS = "forward(self, x, timesteps, context=None, y=None)", "forward(self, prediction)"
STYLE, IMAGES = "forward(self, condition)", "__call__(self, images)"
INIT = "__init__(self, in_channels, out_channels)"
PRIOR = "forward(self, image, *others, **named)"
MAPS, DOUBT = "maps(self, volume, aspect)", "doubt(self, maps, presence, asked, factor)"
MEASURE = "measure(self, values, contrast)"
COUNT = "self.n = vars(self).get('n', 0)"
READ = "makes another image after it is read from its run: a plain attribute holds"
LATE = "model.diffusion_model.late.bias is made after __init__"
FIRST = "in a first step, on noise"
# class, method, what it does, what is said of it
FAULTS = [
    ("Net", NET, "open('/no/table.npy')", "py line 4, which is not of this project: FileNot"),
    ("Net", NET, "raise RuntimeError('mine')", "which is not of this project: RuntimeError: mine"),
    ("Net", INIT, "raise OSError('no weights')", "which is not of this project: OSError: no weig"),
    (
        "Net",
        INIT,
        "torch.nn.Module.__init__(self); self.denoised = lambda x: x[:, :1]",
        "no weight to train",
    ),
    (
        "Net",
        INIT,
        "own_classes.Net.__init__(self, in_channels, out_channels); self.requires_grad_(False)",
        "Fault has no weight to train",
    ),
    ("Net", NET, "return self.denoised(x).detach()", "Fault does not depend on its weights"),
    ("Net", NET, "return torch.fft.fft2(self.denoised(x))", "Fault returned complex numbers"),
    ("Net", NET, "return self.denoised(x) / 0", "no weight has changed: look for a div"),
    ("Net", NET, "return self.denoised(x).repeat(1, 2, 1, 1)", "has learn_sigma, set it to false"),
    ("Net", NET, "h = self.denoised(x).exp(); h *= 2; return h", "modified by an inplace"),
    ("Net", NET, "assert self.training; return self.denoised(x)", "AssertionError"),
    ("Net", NET, f"{COUNT} + 1; return self.denoised(x) + self.n", "another image each time"),
    ("Net", NET, f"{COUNT} + self.training; return self.denoised(x) + self.n", READ),
    ("Net", NET, "self.late = torch.nn.Conv2d(1, 1, 1); return self.late(self.denoised(x))", LATE),
    ("Loss", "forward(self)", "return {}", "it is called as forward(prediction)"),
    ("Loss", LOSS, "return None", "Fault returned None: expected {'own': a real number"),
    ("Loss", LOSS, "return prediction.x_0.mean()", "expected {'own': a real number"),
    ("Loss", LOSS, "return {'own': prediction.x_0}", "expected {'own': a real number"),
    ("Loss", LOSS, "return {'fit': 0.0}", "Fault returned a term 'fit', which is taken"),
    ("Loss", LOSS, "return {'loss': 0.0}", "Fault returned a term 'loss', which is taken"),
    ("Loss", LOSS, "return {'own': prediction.x_0.mean() / 0}", "own is "),
    ("Loss", LOSS, "open('/no/table.npy')", "FileNotFoundError"),
    ("Loss", "__init__(self)", "pass", "does not call super().__init__()"),
    ("Style", STYLE, "return None", "Fault returned NoneType"),
    ("Style", STYLE, "return condition", "expected one tensor (2, 8)"),
    ("Style", STYLE, "raise KeyError('age')", "which is not of this project: KeyError: 'age'"),
    ("Style", "width", "8.0", "Fault.width is 8.0: give a whole number"),
    ("Intensity", "measure(self, values, contrast)", "open('/no/table.npy')", "FileNotFoundError"),
    ("Intensity", "measure(self, values, contrast)", "return 1.0, 0.0", "has no spread"),
    ("Intensity", "fit(self, array, brain, contrast, case)", "return 1.0", "Fault.fit returned 1"),
    ("Intensity", MEASURE, f"{COUNT} + 1; return self.n, 1", "measures t1 otherwise"),
    (
        "Intensity",
        "to_learn(self, contrasts)",
        "return [c for c in contrasts if c not in vars(self)]\n"
        "    def profile(self, *given): return 1\n"
        "    def learn(self, contrast, profiles): vars(self)[contrast] = 1",
        "let learned_config return its params with what it has learned",
    ),
    ("Flip", IMAGES, "return None", "Fault returned 'brain' as None"),
    ("Flip", IMAGES, "images.pop('target'); return images", "Fault returned 'target' as None"),
    ("Flip", IMAGES, "images['more'] = 1; return images", "Fault returned 'more' as ('int',)"),
    ("Flip", IMAGES, "return {n: a[..., 1:] for n, a in images.items()}", "as (1, 32, 31), expect"),
    ("Flip", IMAGES, "raise OSError('no atlas')", "which is not of this project: OSError: no atla"),
    ("T1", "forward(self, condition, presence)", "return condition", "expected one tensor (2, 1,"),
    ("T1", "forward(self, condition, presence)", "return None", "Fault returned NoneType"),
    ("T1", "fit(self, data)", "self.forward = lambda c, p: c[:, :1] + 0.3", READ),
    ("T1", "fit(self, data)", "raise OSError('no table')", "OSError: no table"),
    ("Weight", "forward(self, batch, means)", "return 1.0", "Fault returned float"),
    ("Stage", "encode(self, images)", "return None", "Fault.encode returned NoneType"),
    ("Stage", "decode(self, latents)", "raise OSError('no codebook')", "OSError: no codebook"),
    ("Knows", "fit(self)", "pass", "in Fault: TypeError: Fault.fit() takes 1 positional"),
    ("Knows", "fit(self, data)", "open('/no/table.npy')", "FileNotFoundError"),
    ("Knows", PRIOR, "return None", "Fault returned NoneType"),
    ("Knows", PRIOR, "return image[..., 1:]", "Fault returned (2, 1, 32, 31)"),
    ("Knows", "forward(self, image, condition)", "return image", "called as forward(image, cond"),
    ("Knows", "__init__(self)", "pass", "does not call super().__init__()"),
    ("Knows", PRIOR, "return image / 0", ".Fault: an image of it is not finite"),
    ("Knows", "fit(self, data)", "self.forward = lambda *a, **b: a[0] + 0.5", READ),
    (
        "Knows",
        "fit(self, data)",
        "self.register_buffer('late', torch.ones(2))",
        "prior.late is made",
    ),
    ("Knows", DOUBT, "return maps", "Fault.doubt returned (2, 1, 32, 32)"),
    ("Knows", MAPS, "return 'enhancing'", "Fault.maps returned str"),
    ("Knows", MAPS, "return volume[0]", "Fault.maps returned (4, 32, 32)"),
    ("Line", "alpha(self, t)", "return None", "Fault.alpha returned NoneType"),
    ("Line", "sigma(self, t)", "return t.double()[:3]", "expected one tensor (101) of real"),
    ("Line", "sigma(self, t)", "return t / torch.nan", "has alpha nan and sigma nan at -1"),
    ("Line", "sigma(self, t)", "return (t.double() - t).abs()", "does not fall with each timestep"),
    ("Line", "timestep_of(self, half_log_snr)", "return half_log_snr", "does not find timestep 50"),
    ("Line", "to_dict(self)", "return {'t': {1, 2}}", "Fault.to_dict gives no plain numbers"),
    ("Watch", "on_train_batch_end(self, trainer)", "pass", "Fault.on_train_batch_end: too many po"),
    ("Watch", "teardown(self, trainer, module)", "pass", "called as teardown(trainer, pl_modul"),
    ("Watch", "state_dict(self)", "return {'seen': self}", "callbacks.Fault.seen of the checkpoi"),
    ("Watch", "state_dict(self)", "return {'f': lambda: 1}", "callbacks.Fault.f of the checkpoint"),
    ("Watch", "state_dict(self)", "open('/no/table.csv')", "FileNotFoundError"),
    ("Descent", "step(self)", "pass", "Fault.step() got an unexpected keyword argument 'closure'"),
    ("Descent", "step(self, closure)", "raise RuntimeError('mine')", "RuntimeError: mine"),
    ("Descent", "state_dict(self)", "return {'own': self}", "optimizer_states.own of the checkpo"),
    ("Hospital", "parse", "Layout.parse", "layout Fault has no method parse(path)"),
    ("Hospital", "scheme", "{1: 'enhancing'}", "layout Fault.scheme is {1: 'enhancing'}"),
    ("Hospital", "__init__(self)", "open('/no/table.csv')", "FileNotFoundError"),
    ("Steps", "draw(self, uniform)", "return uniform + 1e6, 1 + uniform", f"{FIRST}, of own_"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the classes of the user lie, and Python finds them."""
    folder = tmp_path_factory.mktemp("own_classes")
    (folder / "own_classes.py").write_text(CLASSES)
    (folder / "own.yaml").write_text(YAML)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def words(name: str, target: str) -> list[str]:
    return [word.replace("TARGET", target) for word in PLACES[name]]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_fault_is_told_before_a_patient_is_read(folder, tmp_path, capsys, number):
    """The folder of patients does not exist, and that is not what is said."""
    name, method, does, said = FAULTS[number]
    body = f"def {method}: {does}" if "(" in method else f"{method} = {does}"
    module = f"own_fault_{number}"
    code = "import torch, own_classes\nfrom ldm.data.layouts import Layout\n"
    code += f"class Fault(own_classes.{name}):\n    {body}\n"
    (folder / f"{module}.py").write_text(code)
    given = [*words(name, f"{module}.Fault"), f"data.params.root={tmp_path / 'nowhere'}"]
    assert main(["train", str(folder / "own.yaml"), *given, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error CONFIG-" in line and said in line
    with pytest.raises(ConfigError) as refused:
        ldm.train(folder / "own.yaml", given, output=tmp_path / "run")
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "returned", "said"),
    [
        ("parse(self, path)", "path.name", "Own.parse returned 'Phantom_"),
        ("parse(self, path)", "(1, 't1')", "expected (subject id, contrast), two texts, or None"),
        ("parse(self)", "None", "in Own: TypeError: Own.parse() takes 1 positional argument"),
        ("parse(self, path)", "os.stat('/no/table.csv')", "FileNotFoundError"),
        ("find(self, tree)", "tree.volumes", "Own.find gave PosixPath"),
        ("find(self, tree)", "None", "in Own: TypeError: 'NoneType' object is not iterable"),
        ("file_name(self)", "'x'", "in Own: TypeError: Own.file_name() takes 1 positional"),
    ],
)
def test_a_layout_is_told_what_it_should_return(
    folder, tmp_path, patients, capsys, method, returned, said
):
    module = f"own_layout_{abs(hash((method, returned)))}"
    body = f"def {method}: return {returned}"
    if method.startswith("file_name"):
        body += "\n    def parse(self, path): return None"
    target = written(folder, module, "own_classes.Hospital", body)
    given = ["prepare", str(patients), "--output", str(tmp_path / "prepared"), "--layout", target]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error CONFIG-TARGET" in line and said in line


@pytest.mark.parametrize("name", PLACES)
def test_a_class_that_does_what_it_should_is_trained_as_without_a_rehearsal(
    folder, tmp_path, patients, monkeypatch, caplog, name
):
    """Of the rehearsal nothing is seen, neither in what is said nor in the weights."""
    given = [*words(name, f"own_classes.{name}"), f"data.params.root={patients}", *SPLIT]
    assert main(["train", str(folder / "own.yaml"), *given, "--dry-run"]) == 0
    assert caplog.messages == []
    run = ldm.train(folder / "own.yaml", given, output=tmp_path / "run")
    monkeypatch.setattr("ldm.training.run.rehearse", lambda *given: None)
    other = ldm.train(folder / "own.yaml", given, output=tmp_path / "other")
    first, second = (load_file(each.model) for each in (run, other))
    assert first and all((first[key] == second[key]).all() for key in second)
    assert run.curves == other.curves


@pytest.mark.parametrize(
    "error", [DataError("DATA-IO", "gone"), MemoryError(), OutOfMemory("M", "m")]
)
def test_an_error_that_means_the_same_whoever_raises_it_stays_as_it_is(error):
    with (
        pytest.raises(type(error)) as raised,
        calling(test_a_fault_is_told_before_a_patient_is_read),
    ):
        raise error
    assert raised.value is error


def test_an_error_of_the_project_itself_is_not_of_foreign_code(tmp_path):
    """That of a file, above all, which is the user's to mend."""
    with pytest.raises(FileNotFoundError) as raised:
        sha256(tmp_path / "nothing")
    error = raised.value
    assert of_foreign_code(error)  # this test is in its traceback
    assert of_foreign_code(error.with_traceback(error.__traceback__.tb_next)) is None


def written(folder, module: str, bases: str, body: str) -> str:
    """Write a class ``Own`` of a line, and return its target."""
    code = f"import os, own_classes, torch\nclass Own({bases}):\n    {body}\n"
    (folder / f"{module}.py").write_text(code)
    return f"{module}.Own"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("logits.mean()", "Own returned tensor"),
        ("{'mine': logits.mean()}", "in Own: KeyError: 'loss'"),
        ("{'loss': logits.detach().mean()}", "the loss does not depend on a weight"),
        ("{'loss': 0.5}", "the loss does not depend on a weight"),
    ],
)
def test_a_loss_of_segmentations_is_told_what_it_lacks(folder, capsys, returned, said):
    module = f"own_loss_{abs(hash(returned))}"
    body = f"measure = str\n    def forward(self, logits, target): return {returned}"
    target = written(folder, module, "torch.nn.Module", body)
    given = [word.replace("TARGET", target) for word in SEGMENTATION]
    assert main(["train", *given, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_a_callback_that_fails_in_training_is_told_as_any_other_class(folder, tmp_path, patients):
    """Also where it reads a file; what it adds to a checkpoint is looked at in the first step."""
    for hook, said in {
        "def on_train_start(self, *given): os.stat('/no/table.csv')": "FileNotFoundError",
        "def on_save_checkpoint(self, trainer, module, saved): saved['own'] = self": "own of the c",
    }.items():
        target = written(folder, f"own_hook_{len(hook)}", "own_classes.Watch", hook)
        given = [*words("Watch", target), f"data.params.root={patients}", *SPLIT]
        with pytest.raises(ConfigError, match=said):
            ldm.train(folder / "own.yaml", given, output=tmp_path / f"run-{len(hook)}")
        assert not list(tmp_path.rglob("*.ckpt"))


def test_a_state_that_stops_being_plain_leaves_the_checkpoint_before(folder, tmp_path, patients):
    body = "def state_dict(self): return {'own': self if self.last else 0}\n    last = False\n"
    body += "    def on_train_batch_end(self, *given): self.last = given[0].global_step > 1"
    target = written(folder, "own_late", "own_classes.Watch", body)
    steps = [
        "lightning.callbacks.checkpoint.params.every_n_steps=1",
        "lightning.trainer.max_steps=4",
    ]
    given = [*words("Watch", target), f"data.params.root={patients}", *SPLIT, *steps]
    with pytest.raises(ConfigError, match=r"callbacks\.Own\.own of the checkpoint"):
        ldm.train(folder / "own.yaml", given, output=tmp_path / "run")
    assert step_of(newest_checkpoint(tmp_path / "run")) == 1
    sys.modules["own_late"].Own.state_dict = lambda own: {}  # mended
    trusted = ["own_classes.Net", target]
    assert ldm.train(resume=tmp_path / "run", trust=trusted).steps == 4


def test_a_network_that_takes_one_size_alone_is_pointed_out(folder, caplog):
    """A patient whose brain is larger than the slices of the training is sampled as it is."""
    for body in ("pass", "size_divisor = 2"):
        target = written(folder, f"own_{len(body)}", "own_classes.Strided", body)
        given = [f"model.params.unet_config.target={target}", "--dry-run"]
        assert main(["train", str(folder / "own.yaml"), *given]) == 0
        said = "Own takes images of 32 x 32 but not of 33 x 32"
        assert [said in line for line in caplog.messages] == [True] * (body == "pass")
        caplog.clear()


@pytest.mark.parametrize("process", ["learned_variance", "flow", "residual"])
def test_a_class_that_keeps_all_is_let_through_by_every_process(folder, process):
    config = [str(folder / "own.yaml"), f"configs/process/{process}.yaml"]
    given = ["model.params.sampling_steps=5", "model.params.temperature=1", "--dry-run"]
    assert main(["train", *config, *given]) == 0


def test_samples_that_differ_each_time_are_pointed_out(folder, caplog):
    body = "def forward(self, x, t): return torch.nn.functional.dropout(self.denoised(x), 0.1)"
    target = written(folder, "own_dropout", "own_classes.Net", body)
    given = [f"model.params.unet_config.target={target}", "--dry-run"]
    assert main(["train", str(folder / "own.yaml"), *given]) == 0
    (said,) = caplog.messages
    assert f"{target} draws when it samples" in said


def test_ctrl_c_ends_a_rehearsal_as_it_ends_all_else(folder, tmp_path):
    body = "def forward(self, x, t): raise KeyboardInterrupt"
    target = written(folder, "own_stopped", "own_classes.Net", body)
    given = [f"model.params.unet_config.target={target}", "data.params.root=nowhere"]
    assert main(["train", str(folder / "own.yaml"), *given, "--output", str(tmp_path)]) == 130


def test_a_class_is_handed_over_from_python(folder, tmp_path, patients):
    from own_classes import Numpy

    given = {"model.params.unet_config.target": Numpy, "data.params.root": patients}
    run = ldm.train(folder / "own.yaml", {**given, "data.params.val": 0}, output=tmp_path / "run")
    network = ldm.Synthesiser.load(run.folder, trust="own_classes.Numpy").model.network
    assert isinstance(network.diffusion_model, Numpy)


def test_a_class_of_a_notebook_is_known_there_alone(folder, caplog, capsys, monkeypatch):
    import own_classes

    given = ["train", str(folder / "own.yaml"), "model.params.unet_config.target=__main__.Noted"]
    noted = type("Noted", (own_classes.Net,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Noted", noted, raising=False)
    assert main([*given, "--dry-run"]) == 0
    assert any("__main__.Noted is known in this notebook" in line for line in caplog.messages)
    monkeypatch.undo()  # as in another program
    assert main([*given, "--dry-run"]) == 2
    assert "'__main__.Noted' was written in a notebook or script" in capsys.readouterr().err


def test_an_error_in_sampling_is_told_as_one_in_training(
    folder, tmp_path, patients, monkeypatch, capsys
):
    body = "def forward(self, x, t): os.stat(os.environ['OWN_ATLAS']); return self.denoised(x)"
    target = written(folder, "own_lost", "own_classes.Net", body)
    monkeypatch.setenv("OWN_ATLAS", str(tmp_path))
    told = [f"model.params.unet_config.target={target}", f"data.params.root={patients}", *SPLIT]
    run = ldm.train(folder / "own.yaml", told, output=tmp_path / "run")
    monkeypatch.setenv("OWN_ATLAS", str(tmp_path / "nowhere"))
    said = "own_lost.py line 3, which is not of this project: FileNotFoundError"
    volumes = ldm.Synthesiser.load(run.folder, trust=target).volumes(patients, ["Phantom_0003"])
    with pytest.raises(ConfigError, match=said):
        next(volumes)
    sample = ["sample", str(run.folder), "--input", str(patients), "--subjects", "Phantom_0003"]
    assert main([*sample, "--output", str(tmp_path / "out"), "--trust", target]) == 2
    assert said in capsys.readouterr().err
