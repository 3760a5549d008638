"""graph.py on names alone: the manual's example network, orders, sub-networks, refusals."""

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnn import graph
from dagnn.errors import GraphError
from dagnn.graph import Wire

# Figure 2.1 of the MatConvNet manual: x0 feeds two layers, w4 is shared, f4 has two outputs.
FIGURE = [
    Wire("f1", ("x0",), ("x1",), ("w1",)),
    Wire("f2", ("x0",), ("x2",), ("w2",)),
    Wire("f3", ("x1", "x2"), ("x3",), ("w4",)),
    Wire("f4", ("x4",), ("x5", "x6"), ("w4",)),
    Wire("f5", ("x3", "x5"), ("x7",), ("w5",)),
]


def derivative_edges(back):
    return {(a, b) for a, b in back.edges if a[0] not in ("var", "param")}


def test_figure_2_1_runs_in_the_manuals_order():
    assert graph.layer_order(graph.forward_graph(FIGURE)) == ["f1", "f2", "f3", "f4", "f5"]


def test_figure_2_2_is_the_bp_reversed_graph():
    back = graph.backward_graph(graph.forward_graph(FIGURE), FIGURE, ["x6", "x7"])
    assert derivative_edges(back) == {
        (("seed_var", "x7"), ("der_var", "x7")),
        (("seed_var", "x6"), ("der_var", "x6")),
        (("der_var", "x7"), ("der_layer", "f5")),
        (("der_layer", "f5"), ("der_var", "x3")),
        (("der_layer", "f5"), ("der_var", "x5")),
        (("der_layer", "f5"), ("der_param", "w5")),
        (("der_var", "x3"), ("der_layer", "f3")),
        (("der_layer", "f3"), ("der_var", "x1")),
        (("der_layer", "f3"), ("der_var", "x2")),
        (("der_layer", "f3"), ("sum_param", "w4")),
        (("der_var", "x5"), ("der_layer", "f4")),
        (("der_var", "x6"), ("der_layer", "f4")),
        (("der_layer", "f4"), ("der_var", "x4")),
        (("der_layer", "f4"), ("sum_param", "w4")),
        (("sum_param", "w4"), ("der_param", "w4")),
        (("der_var", "x1"), ("der_layer", "f1")),
        (("der_layer", "f1"), ("sum_var", "x0")),
        (("der_layer", "f1"), ("der_param", "w1")),
        (("der_var", "x2"), ("der_layer", "f2")),
        (("der_layer", "f2"), ("sum_var", "x0")),
        (("der_layer", "f2"), ("der_param", "w2")),
        (("sum_var", "x0"), ("der_var", "x0")),
    }


def test_a_derivative_layer_reads_what_its_layer_reads():
    back = graph.backward_graph(graph.forward_graph(FIGURE), FIGURE, ["x7"])
    assert {("var", "x1"), ("var", "x2"), ("param", "w4"), ("der_var", "x3")} == set(
        back.predecessors(("der_layer", "f3"))
    )


def test_only_what_is_wanted_is_in_the_backward_graph():
    forward = graph.forward_graph(FIGURE)
    back = graph.backward_graph(forward, FIGURE, ["x7"], wanted_vars=["x1"], wanted_params=[])
    assert {name for kind, name in back if kind == "der_layer"} == {"f5", "f3"}
    assert {name for kind, name in back if kind == "der_var"} == {"x7", "x3", "x1"}
    back = graph.backward_graph(
        forward, FIGURE, ["x6"], wanted_vars=[], wanted_params=["w1", "w2", "w4", "w5"]
    )
    assert {name for kind, name in back if kind == "der_layer"} == {"f4"}
    assert not [node for node in back if node[0].startswith("sum")]


def test_a_variable_read_twice_by_one_layer_is_summed():
    wires = [Wire("double", ("x", "x"), ("y",))]
    forward = graph.forward_graph(wires)
    assert forward.edges[("var", "x"), ("layer", "double")]["slots"] == (0, 1)
    assert ("sum_var", "x") in graph.backward_graph(forward, wires, ["y"])


def test_a_seed_inside_the_net_is_summed_with_the_fan_out():
    wires = [Wire("f", ("x",), ("y",)), Wire("g", ("y",), ("z",))]
    back = graph.backward_graph(graph.forward_graph(wires), wires, ["y", "z"])
    assert set(back.predecessors(("sum_var", "y"))) == {("seed_var", "y"), ("der_layer", "g")}


def test_cycles_are_named():
    wires = [Wire("f", ("a",), ("b",)), Wire("g", ("b",), ("c",)), Wire("h", ("c",), ("a",))]
    with pytest.raises(GraphError, match="cycle: .*f -> b -> g -> c -> h -> a"):
        graph.layer_order(graph.forward_graph(wires))


def test_two_producers_are_named():
    with pytest.raises(GraphError, match="'y' would be produced twice: by layer 'f' and by layer 'g'"):
        graph.forward_graph([Wire("f", ("a",), ("y",)), Wire("g", ("b",), ("y",))])


def test_given_variables_cut_the_net():
    running, available = graph.runnable(FIGURE, {"x3", "x4"})
    assert [wire.name for wire in running] == ["f4", "f5"]
    assert available == {"x3", "x4", "x5", "x6", "x7"}
    assert [wire.name for wire in graph.needed(FIGURE, ["x7"], {"x3", "x4"})] == ["f4", "f5"]
    assert graph.missing_inputs(FIGURE, "x7", {"x0"}) == ["x4"]


def test_last_uses():
    last = graph.last_uses(FIGURE)
    assert (last["x0"], last["x1"], last["x5"], last["x6"]) == ("f2", "f3", "f5", "f4")


@st.composite
def random_wires(draw):
    """A random DAG: every layer reads variables that exist already and writes new ones."""
    variables = [f"in{k}" for k in range(draw(st.integers(1, 3)))]
    wires = []
    for k in range(draw(st.integers(1, 12))):
        inputs = draw(st.lists(st.sampled_from(variables), min_size=1, max_size=3))
        outputs = tuple(f"x{k}.{j}" for j in range(draw(st.integers(1, 2))))
        params = tuple(draw(st.lists(st.sampled_from(["w0", "w1", "w2"]), max_size=2)))
        wires.append(Wire(f"f{k}", tuple(inputs), outputs, params))
        variables += outputs
    return wires


@given(random_wires(), st.randoms())
def test_properties_of_random_graphs(wires, random):
    shuffled = random.sample(wires, len(wires))
    forward = graph.forward_graph(shuffled)
    order = graph.layer_order(forward)
    by_name = {wire.name: wire for wire in wires}
    ordered = [by_name[name] for name in order]
    seen = {name for wire in wires for name in wire.inputs} - graph.producers(wires).keys()
    for wire in ordered:
        assert seen.issuperset(wire.inputs)
        seen.update(wire.outputs)

    starts = [name for name in graph.producers(wires) if not graph.consumers(wires)[name]]
    back = graph.backward_graph(forward, ordered, starts)
    assert nx.is_directed_acyclic_graph(back)
    uses = graph.consumers(wires)
    for name in uses:
        assert (("sum_var", name) in back) == (uses[name] > 1)
    reverse = graph.backward_order(back, {name: k for k, name in enumerate(order)})
    assert reverse == order[::-1]
