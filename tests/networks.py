"""Networks to look at, for the tests of summary, drawing and command line."""

import dagnn

SIAMESE_SHAPES = {"a": (2, 1, 8, 8), "b": (2, 1, 8, 8), "label": (2,)}


def siamese():
    """Two towers with shared parameters that meet in a loss."""
    net = dagnn.DagNN()
    for side in "ab":
        net.add_layer(f"conv_{side}", dagnn.Conv(size=(4, 1, 3, 3)), side, f"c_{side}", ["filters", "biases"])
        net.add_layer(f"relu_{side}", dagnn.ReLU(leak=0.1), f"c_{side}", f"r_{side}")
    net.add_layer("join", dagnn.Concat(), ["r_a", "r_b"], "both")
    net.add_layer("fc", dagnn.Conv(size=(3, 8, 6, 6)), "both", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    return net


def inception(modules=3):
    """A chain of modules of four branches each, with a classifier on the side that shares the label."""
    net = dagnn.DagNN()
    net.add_layer("stem", dagnn.Conv(size=(16, 3, 3, 3), pad=1), "data", "stem")
    x, label = "stem", "label"
    for i in range(modules):
        p = f"m{i}_"
        net.add_layer(p + "1x1", dagnn.Conv(size=(4, 16, 1, 1)), x, p + "1x1")
        net.add_layer(p + "reduce", dagnn.Conv(size=(4, 16, 1, 1)), x, p + "reduce")
        net.add_layer(p + "3x3", dagnn.Conv(size=(4, 4, 3, 3), pad=1), p + "reduce", p + "3x3")
        net.add_layer(p + "reduce5", dagnn.Conv(size=(4, 16, 1, 1)), x, p + "reduce5")
        net.add_layer(p + "5x5", dagnn.Conv(size=(4, 4, 5, 5), pad=2), p + "reduce5", p + "5x5")
        net.add_layer(p + "relu5", dagnn.ReLU(), p + "5x5", p + "5x5x")
        net.add_layer(p + "pool", dagnn.Pooling(pool_size=3, pad=1), x, p + "pool")
        net.add_layer(p + "proj", dagnn.Conv(size=(4, 16, 1, 1)), p + "pool", p + "proj")
        net.add_layer(p + "join", dagnn.Concat(), [p + "1x1", p + "3x3", p + "5x5x", p + "proj"], p + "out")
        x = p + "out"
        if i == 0:
            net.add_layer("side", dagnn.Conv(size=(10, 16, 8, 8)), x, "side")
            net.add_layer("side_loss", dagnn.Loss(), ["side", label], "side_objective")
    net.add_layer("fc", dagnn.Conv(size=(10, 16, 8, 8)), x, "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", label], "objective")
    return net


def odd():
    """What is rare: several outputs, a skip over ranks, names that need escaping, an unknown layer."""
    net = dagnn.DagNN()
    net.add_layer("split", dagnn.Split(1, sizes=(1, 2)), "x", ["p", "q"])
    net.add_layer("<&>", dagnn.Sigmoid(), "q", "a variable with a name much too long to be written out")
    net.add_layer("twice", dagnn.Sum(), ["p", "p"], "pp")
    net.add_layer("mystery", dagnn.Placeholder("XCorr", {"bias": 1}), ["pp", "x"], "w")
    return net
