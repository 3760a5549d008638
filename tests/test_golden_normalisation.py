"""lrn, batch norm, spatial norm, offset norm and p-norm against MatConvNet."""

import pytest
from agreement import agree
from matlab import cases, error, load, nchw

from dagnn.errors import OptionError, ShapeError

# Where we depart from MatConvNet on purpose: its derivative for x when moments are given is that of the
# batch formula, which is not the derivative of what it computed. test_kernels_properties checks ours.
DEPARTURES = {"given_own_moments": ("dzdx",), "given_other_moments": ("dzdx",)}


@pytest.mark.parametrize("case", cases("lrn"))
def test_lrn(backend, case):
    size, kappa, alpha, beta = case.raw["in"]["param"].ravel().tolist()
    param = {"size": int(size), "kappa": kappa, "alpha": alpha, "beta": beta}
    agree(
        backend,
        case,
        lambda get: {
            "y": backend.lrn(get("x"), **param),
            "dzdx": backend.lrn_dzdx(get("dzdy"), get("x"), **param),
        },
    )


@pytest.mark.parametrize("case", cases("bnorm"))
def test_batch_norm(backend, case):
    def kernel(get):
        x, g, b = get("x"), get("g").ravel(), get("b").ravel()
        given = get("moments")
        if given is not None:
            given = given.reshape(-1, 2)
        y, moments = backend.batch_norm(x, g, b, moments=given, **case.opts)
        dzdx, dzdg, dzdb = backend.batch_norm_ders(get("dzdy"), x, g, moments, given=given is not None)
        return {"y": y, "moments": moments, "moments_bwd": moments, "dzdx": dzdx, "dzdg": dzdg, "dzdb": dzdb}

    agree(backend, case, kernel, DEPARTURES.get(case.raw["name"], ()))


@pytest.mark.parametrize("case", cases("spnorm"))
def test_spatial_norm(backend, case):
    height, width, alpha, beta = case.raw["in"]["param"].ravel().tolist()
    param = {"size": (int(height), int(width)), "alpha": alpha, "beta": beta}
    agree(
        backend,
        case,
        lambda get: {
            "y": backend.spatial_norm(get("x"), **param),
            "dzdx": backend.spatial_norm_dzdx(get("dzdy"), get("x"), **param),
        },
    )


@pytest.mark.parametrize("case", cases("noffset"))
def test_norm_offset(backend, case):
    param = dict(zip(("alpha", "beta"), case.raw["in"]["param"].ravel().tolist(), strict=True))
    agree(
        backend,
        case,
        lambda get: {
            "y": backend.norm_offset(get("x"), **param),
            "dzdx": backend.norm_offset_dzdx(get("dzdy"), get("x"), **param),
        },
    )


@pytest.mark.parametrize("case", cases("normalizelp"))
def test_normalize_lp(backend, case):
    opts = case.opts
    dimensions = (1, 2) if opts.pop("spatial", False) else opts.pop("dimensions", (3,))
    dimensions = dimensions if isinstance(dimensions, tuple) else (dimensions,)
    axes = tuple({1: 2, 2: 3, 3: 1, 4: 0}[d] for d in dimensions)
    p = opts.pop("p", opts.pop("exponent", 2))

    def kernel(get):
        y, norms = backend.normalize_lp(get("x"), p=p, axes=axes, norms=get("norms"), **opts)
        dzdx = backend.normalize_lp_dzdx(get("dzdy"), get("x"), norms, p=p, axes=axes)
        return {"y": y, "norms": norms, "dzdx": dzdx}

    agree(backend, case, kernel)


@pytest.mark.parametrize("number", [24, 25, 26])
def test_batch_norm_refuses_parameters_of_another_size(backend, number):
    x, g, b, *moments = load("errors")[number - 1]["args"]
    moments = backend.asarray(moments[1]) if moments else None
    with pytest.raises(ShapeError, match=r"x has 2 channels, so \w+ must be \(2,.*got shape \(3,"):
        backend.batch_norm(
            backend.asarray(nchw(x)), backend.asarray(g.ravel()), backend.asarray(b.ravel()), moments=moments
        )


@pytest.mark.parametrize("axes", [(4,), (-1,), (), (1, 1)])
def test_normalize_lp_refuses_axes_that_are_not(backend, axes):
    x = backend.asarray(nchw(load("errors")[30]["args"][0]))
    with pytest.raises(OptionError, match="axes takes different numbers from 0 to 3"):
        backend.normalize_lp(x, axes=axes)


@pytest.mark.parametrize("leak", [None, 0.0, 0.2])
@pytest.mark.parametrize("case", cases("bnorm")[:2])
def test_batch_norm_adds_and_rectifies_last(backend, case, leak):
    x, g, b = (backend.asarray(case.x(name)) for name in "xgb")
    g, b, add = g.ravel(), b.ravel(), backend.asarray(case.dzdy())
    y, moments = backend.batch_norm(x, g, b)
    expected = y + add if leak is None else backend.relu(y + add, leak)
    y, same_moments = backend.batch_norm(x, g, b, add=add, relu=leak)
    assert error(backend.to_numpy(y), backend.to_numpy(expected)) < 1e-14
    assert (moments == same_moments).all()
    with pytest.raises(ShapeError, match="add has shape"):
        backend.batch_norm(x, g, b, add=add[:, :, :1, :1])
