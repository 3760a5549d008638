"""The trainer: what it computes, what it writes, what it says when something is wrong."""

import threading

import numpy as np
import pytest

import dagnn
from dagnn.data import Arrays, Data
from dagnn.errors import DataError, FileFormatError, GraphError, LabelError, OptionError, TrainingError
from dagnn.train import SGD, Adam, Trainer, fit
from dagnn.train.loader import Loader, parts


def network(*, batch_norm=False, dropout=False, dtype="float64"):
    """Two convolutions, as the cases ask, with a loss and an error."""
    net = dagnn.DagNN()
    net.add_layer("conv1", dagnn.Conv(size=(4, 1, 3, 3), pad=1), "x", "c1")
    x = "c1"
    if batch_norm:
        net.add_layer("bnorm", dagnn.BatchNorm(4), x, "b1")
        x = "b1"
    if dropout:
        net.add_layer("dropout", dagnn.DropOut(rate=0.4), x, "d1")
        x = "d1"
    net.add_layer("relu", dagnn.ReLU(), x, "r1")
    net.add_layer("conv2", dagnn.Conv(size=(3, 4, 4, 4)), "r1", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.add_layer("error", dagnn.Loss("classerror"), ["scores", "label"], "top1err")
    net.init_params(1, dtype)
    return net


def samples(n=50, dtype="float64", sets=None):
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=n)
    x = rng.standard_normal((n, 1, 4, 4)) + label[:, None, None, None] - 1
    return Arrays({"x": x.astype(dtype), "label": label}, sets)


def values(net):
    return {name: param.value.copy() for name, param in net.params.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def trained(net=None, data=None, **options):
    net = net or network()
    options = {"learning_rate": 0.05, "batch_size": 8, "num_epochs": 3, "progress": False} | options
    history = fit(net, data or samples(sets=[1] * 40 + [2] * 10), **options)
    return values(net), history


class Noisy(Data):
    """Samples to which training adds noise."""

    def __init__(self):
        self.data = samples()
        super().__init__([1] * 40 + [2] * 10)

    def __len__(self):
        return len(self.data)

    def batch(self, indices, rng=None):
        batch = self.data.batch(indices)
        if rng is not None:
            batch["x"] = batch["x"] + 0.1 * rng.standard_normal(batch["x"].shape)
        return batch


# ---- what is computed


def test_one_epoch_is_eval_and_step_over_a_permutation():
    net, data = network(), samples(20)
    order = np.random.default_rng((7, 1)).permutation(20)
    solver = SGD(learning_rate=0.05)
    for start in range(0, 20, 8):
        net.eval(data.batch(order[start : start + 8]), {"objective": 1})
        solver.step(net)
    params, _ = trained(data=data, num_epochs=1, random_seed=7)
    assert_same(params, values(net))


@pytest.mark.parametrize("num_sub_batches", [2, 3, 8, 20])
@pytest.mark.parametrize("normalise", [True, False])
def test_sub_batches_change_nothing_where_samples_do_not_meet(num_sub_batches, normalise):
    def net():
        net = network()
        net.replace_layer("loss", dagnn.Loss(normalise=normalise))
        return net

    whole, history = trained(net())
    cut, cut_history = trained(net(), num_sub_batches=num_sub_batches)
    for name in whole:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-9)
    for a, b in zip(history, cut_history, strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=1e-9)
        assert a["val"] == pytest.approx(b["val"], rel=1e-9)


def test_moments_of_sub_batches_are_averaged_by_size():
    data = samples(5)
    net, other = network(batch_norm=True), network(batch_norm=True)
    net.params["bnorm_moments"].learning_rate = other.params["bnorm_moments"].learning_rate = 1.0
    order = np.random.default_rng((0, 1)).permutation(5)
    moments = []
    for part in (order[::2], order[1::2]):
        other.eval(data.batch(part), {"objective": 1})
        moments.append(other.params["bnorm_moments"].der)
    trained(net, data, batch_size=5, num_sub_batches=2, num_epochs=1)
    expected = (3 * moments[0] + 2 * moments[1]) / 5
    np.testing.assert_allclose(net.params["bnorm_moments"].value, expected, rtol=1e-12)


def test_sub_batches_share_the_rate_of_their_batch():
    whole, _ = trained(learning_rate=lambda time: 0.1 * 0.5**time)
    cut, _ = trained(learning_rate=lambda time: 0.1 * 0.5**time, num_sub_batches=4)
    for name in whole:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-9)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_sum_of_losses_is_scaled_as_its_parts(normalise):
    def net():
        net = network()
        net.replace_layer("loss", dagnn.Loss(normalise=normalise))
        net.add_layer("second", dagnn.Loss("mhinge", normalise=normalise), ["scores", "label"], "hinge")
        net.add_layer("total", dagnn.Sum(), ["objective", "hinge"], "total")
        return net

    parts, _ = trained(net(), der_outputs={"objective": 1, "hinge": 1})
    total, history = trained(net(), der_outputs={"total": 1}, num_sub_batches=3)
    for name in parts:
        np.testing.assert_allclose(total[name], parts[name], rtol=1e-9)
    assert history[-1]["val"]["total"] == pytest.approx(
        history[-1]["val"]["objective"] + history[-1]["val"]["hinge"]
    )


def test_a_sum_of_a_mean_and_a_sum_is_refused():
    net = network()
    net.add_layer("second", dagnn.Loss("mhinge", normalise=False), ["scores", "label"], "hinge")
    net.add_layer("total", dagnn.Sum(), ["objective", "hinge"], "total")
    with pytest.raises(OptionError, match="Name its parts instead: objective, hinge"):
        trained(net, der_outputs={"total": 1})


def test_validation_changes_nothing():
    data = Noisy()
    with_val, _ = trained(network(dropout=True), data)
    without, _ = trained(network(dropout=True), data.map(lambda batch, rng: batch), num_epochs=3)
    assert_same(with_val, without)
    net = network(dropout=True)
    Trainer(net, learning_rate=0.05, batch_size=8, num_epochs=3, progress=False).fit(data, val=[])
    assert_same(with_val, values(net))


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetch_changes_nothing(prefetch):
    expected = trained(network(batch_norm=True, dropout=True), Noisy())
    params, history = trained(network(batch_norm=True, dropout=True), Noisy(), prefetch=prefetch)
    assert_same(params, expected[0])
    assert history == expected[1]


def test_the_seed_decides_everything():
    nets = [network(dropout=True) for _ in range(3)]
    a, b, c = (trained(net, Noisy(), random_seed=seed)[0] for net, seed in zip(nets, (4, 4, 5), strict=True))
    assert_same(a, b)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


def test_statistics_are_the_losses_averages():
    net, data = network(), samples(sets=[1] * 40 + [2] * 10)
    _, history = trained(net, data, num_epochs=2)
    net.mode = "test"
    out = net.eval(data.batch(data.val))
    assert history[-1]["val"] == {name: pytest.approx(float(value)) for name, value in out.items()}
    assert list(history[-1]["train"]) == ["objective", "top1err"]


def test_the_mean_of_a_loss_without_an_average_is_its_statistic():
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(1, 1, 1, 1)), "x", "y")
    net.add_layer("loss", dagnn.PDist(no_root=True, aggregate=True), ["y", "target"], "objective")
    net.init_params(0)
    x = np.random.default_rng(0).standard_normal((30, 1, 2, 2)).astype(np.float32)
    trainer = Trainer(net, batch_size=7, progress=False)
    y = net.eval({"x": x}, outputs="y")["y"]
    stats = trainer.evaluate({"x": x, "target": x})
    assert stats == {"objective": pytest.approx(np.sum((y - x) ** 2) / 30, rel=1e-5)}


def test_a_sum_over_samples_is_divided_by_the_batch_size():
    def net(normalise):
        net = network()
        net.replace_layer("loss", dagnn.Loss(normalise=normalise))
        return net

    mean, total = trained(net(True))[0], trained(net(False))[0]
    for name in mean:
        np.testing.assert_allclose(total[name], mean[name], rtol=1e-9)


def test_weights_of_several_losses():
    def net():
        net = network()
        net.add_layer("second", dagnn.Loss("mhinge"), ["scores", "label"], "hinge")
        return net

    ours, reference = net(), net()
    trained(ours, samples(6), batch_size=6, num_epochs=1, der_outputs={"objective": 0.5, "hinge": 2})
    order = np.random.default_rng((0, 1)).permutation(6)
    reference.eval(samples(6).batch(order), {"objective": 0.5, "hinge": 2})
    SGD(learning_rate=0.05).step(reference)
    assert_same(values(ours), values(reference))


def test_epoch_size_draws_afresh():
    seen = []

    class Watched(Noisy):
        def batch(self, indices, rng=None):
            if rng is not None:
                seen.append(np.array(indices))
            return super().batch(indices, rng)

    trained(data=Watched(), epoch_size=8, num_epochs=4)
    assert [len(set(indices)) for indices in seen] == [8] * 4
    assert len({tuple(sorted(indices)) for indices in seen}) == 4


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (None, [0.25] * 6),
        (0.5, [0.5] * 6),
        ([0.5, 0.1], [0.5, 0.5, 0.1, 0.1, 0.1, 0.1]),
        (np.array([0.5, 0.1, 0.0]), [0.5, 0.5, 0.1, 0.1, 0, 0]),
        (lambda time: 1 - time / 4, [1, 0.875, 0.75, 0.625, 0.5, 0.375]),
    ],
)
def test_learning_rates(rate, expected):
    rates = []

    class Recording(SGD):
        def step(self, net):
            rates.append(self.learning_rate)
            super().step(net)

    trained(data=samples(16), solver=Recording(0.25), learning_rate=rate)
    assert rates == expected


def test_freeze_and_rates_of_parameters():
    net = network()
    before = values(net)
    net.params["conv1_biases"].learning_rate = 0
    net.params["conv1_biases"].weight_decay = 0
    after, _ = trained(net, freeze="conv2*")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"conv1_filters"}


def test_mode_and_accumulation_are_given_back():
    net = network()
    net.mode, net.accumulate_param_ders = "test", True
    accumulating, _ = trained(net)
    assert (net.mode, net.accumulate_param_ders) == ("test", True)
    assert_same(accumulating, trained()[0])


def test_extract_stats():
    def lengths(net):
        return {"length": np.linalg.norm(net.params["conv1_filters"].value)}

    _, history = trained(extract_stats=lengths)
    assert all(set(stats["train"]) == set(stats["val"]) == {"length"} for stats in history)
    assert all(type(stats["val"]["length"]) is float for stats in history)


# ---- hooks, checkpoints, resuming


def test_a_hook_changes_the_rate_and_stops(tmp_path):
    rates = []

    def hook(trainer):
        rates.append(trainer.rate_at(trainer.epoch))
        if trainer.epoch == 2:
            trainer.learning_rate = 0.001
        if trainer.epoch == 4:
            trainer.stop()

    _, history = trained(num_epochs=10, post_epoch=hook, exp_dir=tmp_path)
    assert rates == [0.05, 0.05, 0.001, 0.001]
    assert len(history) == 4
    again = trained(num_epochs=10, post_epoch=hook, exp_dir=tmp_path, continue_=True)[1]
    assert again == history


@pytest.mark.parametrize("solver", [SGD, Adam])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_resuming_is_as_if_never_interrupted(tmp_path, solver, first):
    def hook(trainer):
        if trainer.epoch == 2:
            trainer.learning_rate = 0.01
            trainer.net.unfreeze("conv1*")

    options = {"post_epoch": hook, "freeze": "conv1*"}

    def run(**more):
        return trained(network(batch_norm=True, dropout=True), Noisy(), solver=solver(), **options, **more)

    straight, history = run(num_epochs=5)
    run(num_epochs=first, exp_dir=tmp_path)
    resumed, resumed_history = run(num_epochs=5, exp_dir=tmp_path, continue_=True)
    assert_same(resumed, straight)
    assert resumed_history == history
    assert_same(values(dagnn.load(tmp_path / "net-epoch-5.h5")), straight)


def test_training_on_with_the_same_trainer(tmp_path):
    net = network(dropout=True)
    trainer = Trainer(net, batch_size=8, num_epochs=2, progress=False, exp_dir=tmp_path)
    trainer.fit(samples())
    trainer.num_epochs = 4
    trainer.fit(samples())
    straight, history = trained(
        network(dropout=True), samples(), num_epochs=4, learning_rate=None, batch_size=8
    )
    assert_same(values(net), straight)
    assert trainer.history == history


@pytest.mark.parametrize("folder", [True, False])
def test_fitting_again_after_an_error(tmp_path, folder, capsys):
    def fail(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    net = network(dropout=True)
    exp_dir = tmp_path if folder else None
    trainer = Trainer(net, learning_rate=0.05, batch_size=8, num_epochs=3, exp_dir=exp_dir, post_epoch=fail)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Noisy())
    trainer.post_epoch = None
    trainer.fit(Noisy())
    out = capsys.readouterr().out
    if folder:
        assert_same(values(net), trained(network(dropout=True), Noisy())[0])
        assert "1 of 3 epochs are done" in out
    else:
        assert "was broken off" in out


def test_a_rate_of_the_hook_outlives_another_fit(tmp_path):
    def hook(trainer):
        trainer.learning_rate = 0.001

    options = {"learning_rate": 0.05, "batch_size": 8, "progress": False, "exp_dir": tmp_path}
    trainer = Trainer(network(), num_epochs=1, post_epoch=hook, **options)
    trainer.fit(samples())
    trainer.num_epochs, trainer.post_epoch = 2, None
    trainer.fit(samples())
    resumed = Trainer(network(), num_epochs=2, continue_=True, **options)
    resumed.fit(samples())
    assert resumed.rate_at(0) == 0.001


def test_a_rate_of_the_hook_that_no_file_can_keep(tmp_path):
    def hook(trainer):
        trainer.learning_rate = lambda time: 0.1

    with pytest.raises(OptionError, match="which no checkpoint can keep"):
        trained(post_epoch=hook, exp_dir=tmp_path)
    assert len(trained(post_epoch=hook)[1]) == 3


def test_freezing_something_else_when_resuming(tmp_path):
    trained(exp_dir=tmp_path, num_epochs=1, freeze="conv1*")
    net = network()
    before, _ = trained(net, exp_dir=tmp_path, num_epochs=1, continue_=True, freeze="conv2*")
    after, _ = trained(net, exp_dir=tmp_path, num_epochs=2, continue_=True, freeze="conv2*")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"conv1_filters", "conv1_biases"}


def test_a_stopped_training_goes_on_when_asked(tmp_path):
    trained(exp_dir=tmp_path, num_epochs=5, post_epoch=lambda trainer: trainer.stop())
    trainer = Trainer(network(), num_epochs=5, exp_dir=tmp_path, continue_=True, progress=False)
    assert len(trainer.fit(samples())) == 1
    assert len(trainer.fit(samples())) == 5


def test_a_solver_is_given_back_for_another_training():
    solver = SGD(learning_rate=0.3)
    first, _ = trained(solver=solver, learning_rate=[0.05, 0.01])
    assert solver.learning_rate == 0.3
    again, _ = trained(solver=solver, learning_rate=[0.05, 0.01])
    assert_same(first, again)


def test_an_old_training_is_not_overwritten(tmp_path):
    trained(exp_dir=tmp_path, num_epochs=2)
    with pytest.raises(OptionError, match=r"checkpoints of a training, up to epoch 2. Resume it with"):
        trained(exp_dir=tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(batch_norm=True), "only the network has 'bnorm' among its layers"),
        (
            lambda: widened(),
            r"'conv1_filters' is \(4, 1, 3, 3\) float64 there and \(5, 1, 3, 3\) float64 here",
        ),
        (lambda: network(dtype="float32"), r"float64 there and \(4,.* float32 here"),
        (lambda: squashed(), "layer 'relu' is ReLU c1 -> r1 there and Sigmoid c1 -> r1 here"),
    ],
)
def test_another_network_does_not_resume(tmp_path, other, message):
    trained(exp_dir=tmp_path, num_epochs=1)
    net = other()
    before = values(net)
    with pytest.raises(GraphError, match=message):
        trained(net, exp_dir=tmp_path, continue_=True)
    assert_same(values(net), before)


def squashed():
    net = network()
    net.replace_layer("relu", dagnn.Sigmoid())
    return net


def widened():
    net = network()
    net.params["conv1_filters"].value = np.zeros((5, 1, 3, 3))
    return net


def test_another_solver_does_not_resume(tmp_path):
    trained(exp_dir=tmp_path, num_epochs=1)
    with pytest.raises(OptionError, match="Adam reads the state of Adam"):
        trained(exp_dir=tmp_path, continue_=True, solver=Adam())


def test_a_network_that_is_no_checkpoint(tmp_path):
    network().save(tmp_path / "net-epoch-3.h5")
    with pytest.raises(FileFormatError, match="not a checkpoint of training"):
        trained(exp_dir=tmp_path, continue_=True)


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "left"),
    [
        (None, None, [1, 2, 3, 4, 5]),
        (1, None, [5]),
        (2, None, [4, 5]),
        (1, "val.s", [2, 5]),
        (1, "-val.s", [3, 5]),
    ],
)
def test_which_checkpoints_stay(tmp_path, keep_last, keep_best, left):
    values = iter([5.0, 5.0, 1.0, 1.0, 9.0, 9.0, 4.0, 4.0, 3.0, 3.0] * 20)
    trained(
        num_epochs=5,
        exp_dir=tmp_path,
        keep_last=keep_last,
        keep_best=keep_best,
        extract_stats=lambda net: {"s": next(values)},
        post_epoch=lambda trainer: trainer.history[-1]["val"].update(
            s=[5.0, 1.0, 9.0, 4.0, 3.0][trainer.epoch - 1]
        ),
    )
    found = sorted(int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("net-epoch-*.h5"))
    assert found == left


def test_the_folder(tmp_path):
    trained(exp_dir=tmp_path / "new" / "folder", num_epochs=2, plots=("png", "svg"))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        *("curves.png", "curves.svg", "net-epoch-1.h5", "net-epoch-2.h5", "stats.csv", "stats.json")
    ]


def test_lines_are_printed_and_no_bar_where_there_is_no_terminal(capsys):
    trained(progress=True, num_epochs=2)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and not err
    assert "epoch 1/2" in out and "objective" in out and "top1err" in out and "\r" not in out


# ---- what can go wrong


def test_a_source_that_raises_names_the_batch():
    class Broken(Noisy):
        def batch(self, indices, rng=None):
            if rng is not None and 11 in indices:
                raise OSError("the disk is gone")
            return super().batch(indices, rng)

    with pytest.raises(
        DataError, match=r"Epoch 1, training: batch \d \(samples .*11.*Broken: OSError: the disk"
    ):
        trained(data=Broken())


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_that_is_no_dict(prefetch):
    class Wrong(Noisy):
        def batch(self, indices, rng=None):
            return [1, 2]

    with pytest.raises(DataError, match="a batch is a dict"):
        trained(data=Wrong(), prefetch=prefetch)


def test_a_label_out_of_range_names_the_sample():
    data = samples(sets=[1] * 40 + [2] * 10)
    data.arrays["label"][17] = 3
    with pytest.raises(LabelError, match=r"number 17 of the data.*'loss': label 3 .* from 0 to 2"):
        trained(data=data)


def test_a_wrong_shape_names_epoch_and_batch():
    data = samples(sets=[1] * 40 + [2] * 10).map(lambda batch, rng: batch | {"x": batch["x"][:, :, :3]})
    with pytest.raises(dagnn.errors.ShapeError, match=r"Epoch 1, training: batch 1: "):
        trained(data=data)


def test_an_objective_that_is_not_finite_names_the_layer(tmp_path):
    data = samples(sets=[1] * 40 + [2] * 10)
    net = network()

    def spoil(trainer):
        if trainer.epoch == 2:
            trainer.net.params["conv2_biases"].value = np.full(3, np.inf)

    with (
        np.errstate(all="ignore"),
        pytest.raises(
            TrainingError,
            match=r"Epoch 3, training: batch 1: objective is .*parameter 'conv2_biases' of layer 'conv2'",
        ),
    ):
        trained(net, data, exp_dir=tmp_path, post_epoch=lambda trainer: spoil(trainer))


def test_a_rate_too_high_is_noticed_before_the_parameters_are_lost(tmp_path):
    net = network(dtype="float32")
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="learning_rate 1e"):
        trained(net, samples(dtype="float32"), learning_rate=1e30, num_epochs=5, exp_dir=tmp_path)
    for path in tmp_path.glob("*.h5"):
        assert all(np.isfinite(value).all() for value in values(dagnn.load(path)).values())


def test_an_input_that_is_not_finite_is_named():
    data = samples(sets=[1] * 40 + [2] * 10)
    data.arrays["x"][3, 0, 1, 1] = np.nan
    with pytest.raises(TrainingError, match="the input 'x' is not finite: 1 of 128 elements nan"):
        trained(data=data, freeze="conv2*")


def test_a_derivative_that_is_not_finite_is_named():
    class Steep(dagnn.Layer):
        """Its derivative is infinite."""

        def forward(self, ctx, inputs, params):
            return [inputs[0].copy()]

        def backward(self, ctx, params, der_outputs):
            return [der_outputs[0] * np.inf], []

    net = network()
    net.insert("steep", Steep(), after="r1")
    before = values(net)
    with (
        np.errstate(all="ignore"),
        pytest.raises(
            TrainingError, match="derivative of parameter .* is not finite; all outputs are finite; the first"
        ),
    ):
        trained(net)
    assert_same(values(net), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is a whole number from 1. Received: 0"),
        ({"num_sub_batches": 1.5}, "num_sub_batches"),
        ({"epoch_size": 0}, "epoch_size"),
        ({"solver": Adam(), "momentum": 0.9}, "Adam has no momentum"),
        ({"der_outputs": {"objectiv": 1}}, "Did you mean 'objective'"),
        ({"der_outputs": {"x": 1}}, "'x' is an input"),
        ({"der_outputs": {"objective": "much"}}, "a weight, a number"),
        ({"keep_best": "val.top5err", "keep_last": 1}, "top5err"),
        ({"keep_best": "top5err"}, "keep_best is a statistic"),
        ({"der_outputs": {}}, "der_outputs is a dict"),
        ({"der_outputs": "objective"}, "der_outputs is a dict"),
        ({"learning_rate": "0.1"}, "learning_rate is a number from 0"),
        ({"learning_rate": []}, "learning_rate is a number from 0"),
        ({"learning_rate": [0.1, float("nan")]}, "learning_rate is a number from 0"),
        ({"learning_rate": lambda time: None}, "learning_rate is a number from 0"),
        ({"solver": SGD}, "solver is a solver, such as SGD()"),
        ({"exp_dir": 3}, "exp_dir is the path"),
        ({"plots": "png"}, "plots is a list"),
        ({"plots": ["gif"]}, "plots is a list"),
        ({"post_epoch": "x"}, "post_epoch is a function"),
        ({"extract_stats": lambda net: 3}, "extract_stats returns"),
        ({"freeze": "*"}, "no parameter has a derivative"),
    ],
)
def test_wrong_options(options, message, tmp_path):
    with pytest.raises(dagnn.errors.DagnnError, match=message):
        trained(**{"exp_dir": tmp_path} | options)


@pytest.mark.parametrize("data", [[1, 2], 3, np.zeros(3), iter([])])
def test_what_is_no_data(data):
    with pytest.raises(OptionError, match="data is a dagnn.data.Data or a dict"):
        Trainer(network(), progress=False).fit(data)


def test_what_is_no_net():
    with pytest.raises(OptionError, match="net is a DagNN. Received: None"):
        Trainer(None)


def test_a_parameter_server_is_refused():
    net = network()
    net.parameter_server = object()
    with pytest.raises(OptionError, match="parameter_server = None"):
        trained(net)


def test_an_objective_that_another_layer_reads():
    net = network()
    net.add_layer("scale", dagnn.Sum(), ["objective"], "again")
    assert_same(trained(net)[0], trained()[0])


def test_labels_of_something_else_than_samples():
    """Six regions in each batch of images, whatever its size."""

    class Regions(Noisy):
        def batch(self, indices, rng=None):
            rois = np.zeros((5, 6))
            rois[3:] = 3
            return {
                "x": super().batch(indices, rng)["x"],
                "rois": rois,
                "label": np.array([0, 1, 2, 0, 1, 9]),
            }

    net = dagnn.DagNN()
    net.add_layer("pool", dagnn.ROIPooling(subdivisions=(4, 4)), ["x", "rois"], "p")
    net.add_layer("conv", dagnn.Conv(size=(3, 1, 4, 4)), "p", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.init_params(0, "float64")
    with pytest.raises(LabelError, match="Epoch 1, training: batch 1: Loss 'loss': label 9 of sample 5"):
        trained(net, Regions())


def test_a_folder_that_cannot_be_written_is_noticed_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        trained(exp_dir=tmp_path / "file", post_epoch=lambda trainer: pytest.fail("an epoch was trained"))


def test_a_picture_that_cannot_be_drawn_ends_nothing(tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "curves.png")

    monkeypatch.setattr("dagnn.train.report.plot", full)
    trained(exp_dir=tmp_path, progress=True)
    assert "No curves: [Errno 28] No space left" in capsys.readouterr().out


def test_what_an_interruption_left_is_cleaned_up(tmp_path):
    for name in (".net-epoch-1.h5.0f.part", ".stats.json.0f.part", ".curves.png.0f.part"):
        (tmp_path / name).write_text("")
    trained(exp_dir=tmp_path, plots=())
    assert not list(tmp_path.glob(".*"))


def test_data_that_never_said_its_sets():
    class Plain(Data):
        def __init__(self):
            self.data = samples()

        def __len__(self):
            return len(self.data)

        def batch(self, indices, rng=None):
            return self.data.batch(indices)

    assert_same(trained(data=Plain())[0], trained(data=samples())[0])


def test_one_part_is_prepared_while_another_is_used():
    """With prefetch=1 the second batch is asked for before the first is given back."""
    asked, third = [], threading.Event()

    class Watched(Noisy):
        def batch(self, indices, rng=None):
            asked.append(len(asked))
            if len(asked) == 3:
                third.set()
            return super().batch(indices, rng)

    loader = Loader(Watched(), parts(np.arange(30), 10, 1, (0,)), random=True, prefetch=1)
    batches = iter(loader)
    next(batches)
    next(batches)
    assert third.wait(60), "while the second is used"
    batches.close()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([0, 50], "numbered 0 to 49. Received: 0 to 50"),
        ([0.5], "list of whole numbers"),
        ([], "no samples to train on"),
    ],
)
def test_wrong_samples(train, message):
    with pytest.raises(OptionError, match=message):
        Trainer(network(), progress=False).fit(samples(), train=train)


def test_samples_may_be_a_mask():
    mask = np.arange(50) < 16
    net, other = network(), network()
    Trainer(net, num_epochs=1, progress=False).fit(samples(), train=mask)
    Trainer(other, num_epochs=1, progress=False).fit(samples(), train=np.arange(16))
    assert_same(values(net), values(other))
