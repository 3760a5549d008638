"""Written .mat files opened by GNU Octave: the struct that MatConvNet's own saveobj makes."""

import shutil
import subprocess

import numpy as np
import pytest

import dagnn

pytestmark = pytest.mark.skipif(shutil.which("octave") is None, reason="GNU Octave is not installed")

CHECKS = """
load('net.mat');
assert(isstruct(net) && isequal(fieldnames(net)', {'vars','params','layers','meta'}));
assert(isequal(fieldnames(net.vars)', {'name','precious'}));
assert(isequal(fieldnames(net.params)', {'name','value','learningRate','weightDecay','trainMethod'}));
assert(isequal(fieldnames(net.layers)', {'name','type','inputs','outputs','params','block'}));
assert(isequal(size(net.layers), [1 5]) && isequal(size(net.params), [1 5]));
assert(isequal({net.layers.type}, {'dagnn.Conv','dagnn.BatchNorm','dagnn.ReLU','dagnn.Concat','dagnn.Loss'}));
assert(iscell(net.layers(1).inputs) && isequal(net.layers(4).inputs, {'r','x'}));
assert(iscell(net.layers(3).params) && isempty(net.layers(3).params));

f = net.params(1).value;
assert(isa(f, 'single') && isequal(size(f), [3 2 4 6]));
assert(f(2,1,3,5) == single(1000 * 4 + 100 * 2 + 10 * 1 + 0));
assert(isequal(size(net.params(2).value), [6 1]) && isequal(size(net.params(5).value), [6 2]));
assert(isa(net.params(1).learningRate, 'double') && net.params(5).learningRate == 0.1);
assert(strcmp(net.params(5).trainMethod, 'average') && strcmp(net.params(1).trainMethod, 'gradient'));

c = net.layers(1).block;
assert(isequal(c.size, [3 2 4 6]) && isequal(c.pad, [1 1 1 1]) && isequal(c.stride, [2 1]));
assert(isa(c.size, 'double') && islogical(c.hasBias) && c.hasBias && iscell(c.opts));
assert(net.layers(4).block.dim == 3);
assert(strcmp(net.layers(5).block.loss, 'topkerror') && isequal(net.layers(5).block.opts, {'topK', 3}));
assert(islogical(net.vars(1).precious) && net.vars(2).precious);
assert(isequal(net.meta.classes.description, {'cat','dog'}) && net.meta.normalization.imageSize(1) == 224);
assert(isequal(net.meta.labels, [1 2 0]));
disp('as saveobj writes it');
"""


CHAIN = """
load('net.mat');
assert(isequal(fieldnames(net)', {'layers','meta'}));
assert(iscell(net.layers) && isequal(size(net.layers), [1 4]));
l = net.layers{1};
assert(strcmp(l.type, 'conv') && strcmp(l.name, 'c') && iscell(l.weights) && isequal(size(l.weights), [1 2]));
assert(isa(l.weights{1}, 'single') && isequal(size(l.weights{1}), [3 2 4 6]) && numel(l.weights{2}) == 6);
assert(isequal(l.pad, [1 1 1 1]) && isequal(l.stride, [2 1]) && isa(l.pad, 'double'));
assert(isequal(l.learningRate, [1 1]) && isequal(l.weightDecay, [1 1]));
assert(isequal(size(net.layers{2}.weights{3}), [6 2]) && net.layers{2}.epsilon == 1e-5);
assert(net.layers{3}.leak == 0.25 && islogical(net.layers{3}.precious));
assert(strcmp(net.layers{4}.type, 'softmaxloss') && ~isfield(net.layers{4}, 'class'));
disp('as vl_simplenn_tidy leaves it');
"""


def octave(script, folder):
    return subprocess.run(
        ["octave", "--no-gui", "--no-init-file", "--quiet", "--eval", script],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_octave_finds_a_chain(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((6, 4, 3, 2), stride=(2, 1), pad=1), "x", "y")
    net.add_layer("b", dagnn.BatchNorm(6), "y", "n")
    net.add_layer("r", dagnn.ReLU(0.25), "n", "r")
    net.add_layer("l", dagnn.Loss(), ["r", "label"], "objective")
    net.init_params(0)
    dagnn.SimpleNN.from_dagnn(net).save(tmp_path / "net.mat")
    result = octave(CHAIN, tmp_path)
    assert result.stdout.strip() == "as vl_simplenn_tidy leaves it", result.stderr


def test_octave_finds_what_saveobj_writes(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((6, 4, 3, 2), stride=(2, 1), pad=1), "x", "y")
    net.add_layer("b", dagnn.BatchNorm(6), "y", "n")
    net.add_layer("r", dagnn.ReLU(), "n", "r")
    net.add_layer("cat", dagnn.Concat(axis=1), ["r", "x"], "z")
    net.add_layer("l", dagnn.Loss("topkerror", top_k=3), ["z", "label"], "objective")
    net.init_params(0)
    k, c, h, w = np.indices((6, 4, 3, 2))
    net.params["c_filters"].value = np.float32(1000 * k + 100 * c + 10 * h + w)
    net.vars["y"].precious = True
    net.meta = {
        "classes": {"description": ["cat", "dog"]},
        "normalization": {"imageSize": np.array([224.0, 224, 3])},
        "labels": np.array([1.0, 2, 0]),
    }
    net.save(tmp_path / "net.mat")
    result = octave(CHECKS, tmp_path)
    assert result.stdout.strip() == "as saveobj writes it", result.stderr
