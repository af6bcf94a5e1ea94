"""Featurizers: parity with s3prl's own weighted sum, padding and batch order, a user's own one."""

import json
from pathlib import Path

import pytest
import torch

from s3prl_varan import UserError, build_upstream
from s3prl_varan.app.cli import main
from s3prl_varan.features.stack import LayerStack, stack_layers
from s3prl_varan.featurizers import featurizer_names, find_featurizer
from s3prl_varan.featurizers.base import Featurizer
from tests.conftest import TINY


def build(name: str, num_hidden: int, dim: int, layer: int | None = None, **options) -> Featurizer:
    cls = find_featurizer(name)
    return cls.build(num_hidden, dim, cls.Options(**options), layer)


ROWS = [  # every featurizer that needs no -l, with the options that change what it is
    ("varan", {}),
    ("varan", {"posterior": "static"}),
    ("varan", {"posterior": "prior"}),
    ("ensemble", {}),
    ("dynamic_sum", {}),
    ("dynamic_sum", {"posterior": "static"}),
    ("weighted_sum", {}),
    ("hconv", {}),
    ("lap", {}),
    ("last_layer", {}),
]


@pytest.mark.parametrize("normalize", [False, True])
def test_weighted_sum_equals_s3prls(normalize):
    from s3prl.upstream.interfaces import Featurizer as TheirFeaturizer

    upstream = build_upstream(TINY)
    theirs = TheirFeaturizer(upstream.expert, upstream_device="cpu", normalize=normalize)
    ours = build("weighted_sum", upstream.num_hidden, upstream.dim)
    weights = torch.randn(upstream.num_hidden)
    theirs.weights.data, ours.weights.data = weights, weights.clone()
    wavs = [torch.randn(6400), torch.randn(9600)]
    expected = theirs(wavs, upstream.expert(wavs))
    hidden = upstream(wavs)
    features = ours(stack_layers(hidden.layers, hidden.lengths, normalize=normalize))
    for index, length in enumerate(features.lengths):
        torch.testing.assert_close(
            features.hidden[index, 0, :length], expected[index], atol=1e-5, rtol=1e-5
        )
    pooled = ours(stack_layers(hidden.layers, hidden.lengths, normalize=normalize, pool=True))
    torch.testing.assert_close(
        pooled.hidden[:, 0, 0],
        torch.stack([each.mean(dim=0) for each in expected]),
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(features.layer_weights[0], weights.softmax(0))


@pytest.mark.parametrize(("name", "options"), ROWS, ids=str)
@pytest.mark.parametrize("pool", [False, True])
def test_padding_and_batch_order_change_nothing(name, options, pool):
    upstream = build_upstream(TINY)
    featurizer = build(name, upstream.num_hidden, upstream.dim, **options).eval()

    def features(wavs):
        hidden = upstream(wavs)
        layers = [hidden.layers[index] for index in featurizer.layers]
        return featurizer(stack_layers(layers, hidden.lengths, pool=pool))

    wavs = [torch.randn(length) for length in (5000, 16000, 900)]
    together = features(wavs)
    backwards = features(wavs[::-1])
    for index, wav in enumerate(wavs):
        alone = features([wav])
        frames = alone.lengths[0]
        for other, at in ((together, index), (backwards, 2 - index)):
            assert other.lengths[at] == frames
            torch.testing.assert_close(
                other.hidden[at, :, :frames], alone.hidden[0], atol=1e-5, rtol=1e-5
            )
            for part in ("posterior_logits", "layer_weights", "inner_kl"):
                if getattr(alone, part) is not None:
                    torch.testing.assert_close(
                        getattr(other, part)[at], getattr(alone, part)[0], atol=1e-5, rtol=1e-5
                    )


def test_frames_of_a_clip_do_not_depend_on_its_batch():
    upstream = build_upstream("fbank")  # says nothing of its frames; they are learned by probing
    short, long = torch.randn(12345), torch.randn(33333)
    assert upstream([short, long]).lengths[0] == upstream([short]).lengths[0]


@pytest.mark.parametrize("name", ["varan", "ensemble", "dynamic_sum"])
def test_layers_can_be_chosen(name):
    assert build(name, 5, 8).layers == [1, 2, 3, 4]
    assert build(name, 5, 8, layers="all").layers == [0, 1, 2, 3, 4]
    assert build(name, 5, 8, layers=[0, -1]).layers == [0, 4]
    for layers in ([5], []):
        with pytest.raises(UserError, match=rf"{name}.layers: expected hidden states in 0..4"):
            build(name, 5, 8, layers=layers)
    with pytest.raises(UserError, match="named twice"):
        build(name, 5, 8, layers=[4, -1])


@pytest.mark.parametrize(
    "name", ["varan", "ensemble", "dynamic_sum", "weighted_sum", "hconv", "lap"]
)
def test_what_joins_layers_wants_several_and_no_flag(name):
    with pytest.raises(UserError, match="one hidden state, .* use `-f last_layer`"):
        build(name, 1, 8)
    with pytest.raises(UserError, match=rf"-l names one hidden state, -f {name}"):
        build(name, 5, 8, layer=2)


def test_a_single_layer_is_handed_on_as_it_is():
    stack = LayerStack(torch.randn(2, 1, 3, 8), torch.tensor([3, 2]))
    for featurizer, layers in ((build("last_layer", 5, 8), [4]), (build("layer", 5, 8, 2), [2])):
        features = featurizer(stack)
        assert featurizer.layers == layers and not list(featurizer.parameters())
        assert torch.equal(features.hidden, stack.hidden)
        assert features.layer_weights.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("name", featurizer_names())
def test_the_objective_is_the_featurizers(name):
    assert {row for row, _ in ROWS} | {"layer"} == set(featurizer_names())
    objective = find_featurizer(name).Options().objective("batch_mean")
    assert (objective.beta > 0) == (name in ("varan", "dynamic_sum"))
    assert (objective.nll, objective.kl) == ("per_example", "posterior_prior")


# ---- a user's own, through the real command line

OWN = '''
from dataclasses import dataclass

import torch
from s3prl_varan import Featurizer, Item, UtteranceTask
from s3prl_varan.options import Count


class Sharp(Featurizer):
    """The weighted sum with a temperature, of the upper layers."""

    name = "sharp"

    @dataclass(frozen=True)
    class Options(Featurizer.Options):
        count: Count = 2
        temperature: float = 1.0

    def __init__(self, layers, temperature):
        super().__init__(layers)
        self.temperature = temperature
        self.weights = torch.nn.Parameter(torch.zeros(len(self.layers)))

    @classmethod
    def build(cls, num_hidden, dim, options, layer):
        return cls(range(num_hidden - options.count, num_hidden), options.temperature)

    def forward(self, stack):
        weights = (self.weights / self.temperature).softmax(0)
        summed = torch.einsum("n,bntd->btd", weights, stack.hidden)
        return self.one_stream(summed, stack, weights)


class Tones(UtteranceTask):
    """Labels from a TSV: path, label, split."""

    name = "tones"

    @dataclass(frozen=True, kw_only=True)
    class Data(UtteranceTask.Data):
        table: str

    def _rows(self):
        with open(self.data.table) as file:
            return [line.split() for line in file]

    def read_outputs(self):
        return sorted({label for _, label, _ in self._rows()})

    def items(self, split):
        from pathlib import Path

        return [
            Item(Path(path).stem, Path(path), self.outputs.index(label))
            for path, label, own in self._rows()
            if own == split
        ]


class Nameless(Featurizer):
    pass


class Half(UtteranceTask):
    name = "half"
'''


@pytest.fixture
def own(tmp_path, tone_corpus) -> dict[str, str]:
    """-u, -d, -f of a user's own files, and the table of two emotions that differ in pitch."""
    (tmp_path / "mine.py").write_text(OWN)
    rows = []
    for number, split in enumerate(("train", "train", "dev", "test"), start=1):
        for emotion, label in (("03", "low"), ("08", "high")):
            folder = tone_corpus / f"Actor_{number:02d}"
            rows += [f"{clip}\t{label}\t{split}" for clip in folder.glob(f"03-01-{emotion}-*.wav")]
    table = tmp_path / "tones.tsv"
    table.write_text("\n".join(rows) + "\n")
    file = str(tmp_path / "mine.py")
    return {"-u": TINY, "-d": f"{file}:Tones", "-f": f"{file}:Sharp", "table": str(table)}


def call(*args: object) -> int:
    return main([str(arg) for arg in args])


def flags(own: dict[str, str]) -> list[str]:
    return [each for key in ("-u", "-d", "-f") for each in (key, own[key])]


def test_a_users_own_task_and_featurizer_train_evaluate_and_infer(
    own, tone_corpus, tmp_path, capsys
):
    folder = tmp_path / "exp"
    settings = {
        "config.downstream_expert.datarc.table": own["table"],
        "config.downstream_expert.datarc.num_workers": 0,
        "config.runner.total_steps": 30,
        "config.optimizer.lr": 0.02,
        "config.sharp.count": 3,
    }
    override = ",,".join(f"{key}={value}" for key, value in settings.items())
    device = ["--device", "cpu"]
    assert call(*flags(own), *device, "-p", folder, "-o", override) == 0, capsys.readouterr().err
    result = json.loads((folder / "result.json").read_text())
    assert result["layers"] == [2, 3, 4] and result["featurizer"] == own["-f"]
    assert result["config"]["sharp"] == {"count": 3, "temperature": 1.0}
    assert result["settings"]["config.sharp.count"] == 3
    assert result["parameters"]["featurizer"]["trainable"] == 3
    figures = result["test"]["test"]
    assert figures["acc"] == 100
    names = {line.split()[0] for line in (folder / "test_predict.txt").read_text().splitlines()}
    assert len(names) == 4
    capsys.readouterr()

    assert call("-m", "evaluate", "-e", folder, *flags(own), *device) == 0
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["loss"] == pytest.approx(figures["loss"], rel=1e-6)
    # A checkpoint's word is not enough to run code.
    assert call("-m", "evaluate", "-e", folder, "-u", TINY, "-d", own["-d"], *device) == 2
    assert f"made with -f {own['-f']}" in capsys.readouterr().err

    Path(own["table"]).unlink()  # inference needs no corpus
    clip = tone_corpus / "Actor_04" / "03-01-08-01-01-01-04.wav"
    code = call("-m", "inference", "-t", clip, "-e", folder, *flags(own), *device)
    assert code == 0, capsys.readouterr().err
    answer = json.loads((folder / "inference.jsonl").read_text().splitlines()[-1])
    assert answer["prediction"] == "high" and set(answer["probabilities"]) == {"low", "high"}
    assert list(answer["layer_weights"]) == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("flag", "name", "expected"),
    [
        ("-f", "mine.py:Shrap", "Did you mean 'Sharp'?"),
        ("-f", "none.py:Sharp", "there is no file none.py"),
        ("-f", "no_such_module:Sharp", "there is no module 'no_such_module'"),
        ("-f", "mine.py:Tones", "expected a subclass of s3prl_varan.Featurizer"),
        ("-f", "mine.py:Nameless", "the class lacks name"),
        ("-d", "mine.py:Sharp", "expected a subclass of s3prl_varan.Task"),
        ("-d", "mine.py:Half", "the class lacks items, read_outputs"),
        ("-f", "broken.py:Sharp", "could not be imported: ZeroDivisionError"),
    ],
)
def test_a_users_mistakes_are_named(flag, name, expected, own, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0\n")
    assert call(*flags(own), flag, name) == 2
    err = capsys.readouterr().err
    assert expected in err and flag in err and "Traceback" not in err


def test_options_of_a_users_featurizer_are_checked(own, tmp_path, capsys):
    table = f"config.downstream_expert.datarc.table={own['table']}"
    for override, expected in (
        ("config.sharp.count=0", "sharp.count: expected int >= 1, found 0"),
        ("config.sharp.cuont=2", "Did you mean 'count'?"),
        ("config.sharp=null", "sharp: expected keys and values"),
    ):
        args = [*flags(own), "-p", tmp_path / "exp", "-o", f"{table},,{override}"]
        assert call(*args) == 2
        assert expected in capsys.readouterr().err
