"""conv and conv_transpose against MatConvNet."""

import pytest
from agreement import agree
from matlab import cases


@pytest.mark.parametrize("case", cases("conv"))
def test_conv(backend, case):
    options = {name: value for name, value in case.opts.items() if not name.startswith("noDer")}

    def kernel(get):
        x, w, b, dzdy = get("x"), get("w"), get("b"), get("dzdy")
        b = None if b is None else b.ravel()
        found = {
            "y": backend.conv(x, w, b, **options),
            "dzdx": backend.conv_dzdx(dzdy, w, x.shape, **options),
            "dzdb": backend.conv_dzdb(dzdy),
        }
        if w is not None:
            found["dzdw"] = backend.conv_dzdw(dzdy, x, w.shape, **options)
        return found

    agree(backend, case, kernel)


@pytest.mark.parametrize("case", cases("convt"))
def test_conv_transpose(backend, case):
    options = case.opts
    if "numgroups" in options:
        options["num_groups"] = options.pop("numgroups")

    def kernel(get):
        x, w, b, dzdy = get("x"), get("w"), get("b"), get("dzdy")
        b = None if b is None else b.ravel()
        return {
            "y": backend.conv_transpose(x, w, b, **options),
            "dzdx": backend.conv_transpose_dzdx(dzdy, w, x.shape, **options),
            "dzdw": backend.conv_transpose_dzdw(dzdy, x, w.shape, **options),
            "dzdb": backend.conv_dzdb(dzdy),
        }

    agree(backend, case, kernel)
