"""oneDNN in place of MKL: the same products, whatever is asked of them. In a process of its own, as it stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cprbench.adapt.products import mkl_holds_back

CHECKS = """
import itertools, sys, torch
from torch.func import vmap
from cprbench.adapt import products

def go(dtype, auto=False):
    torch.manual_seed(1)
    layers = torch.nn.Linear(96, 256), torch.nn.GELU(), torch.nn.Linear(256, 64), torch.nn.Linear(64, 2)
    net = torch.nn.Sequential(*layers)
    net, x = net.to(dtype), torch.randn(16, 29, 96).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=auto):
        y = net(x)[:, 0]
    (y.float() if auto else y).square().mean().backward()
    return [t.detach().double() for t in (y, x.grad, *(p.grad for p in net.parameters()))]

def apart(some, others):
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(some, others))

torch.manual_seed(0)
a, b = torch.randn(300, 64), torch.randn(64, 300)
asked = {
    "plain": lambda: a @ b,
    "transposed": lambda: b.t() @ a.t(),
    "rows apart": lambda: b.t()[:, ::2] @ torch.ones(32, 300),
    "no rows": lambda: torch.mm(torch.ones(0, 64), torch.ones(64, 2048)),
    "nothing between": lambda: torch.mm(torch.ones(300, 0), torch.ones(0, 300)),
    "in double": lambda: a.double() @ b.double(),
    "scaled": lambda: torch.addmm(torch.ones(300), a, b, beta=0.5, alpha=2.0),
    "bias of every row": lambda: torch.addmm(torch.ones(300, 300), a, b),
    "bias of one number": lambda: torch.addmm(torch.ones(1), a, b),
    "mapped": lambda: vmap(lambda m: torch.mm(m, b))(a.expand(4, 300, 64)),
}
before = {name: ask() for name, ask in asked.items()}
with torch.inference_mode():
    inferred = a @ b
rounded = go(torch.float32, auto=True)
assert products.float32_products() == "MKL"
assert products.multiply_by_onednn() and products.multiply_by_onednn()
assert products.float32_products() == "oneDNN"
assert apart(go(torch.float64), go(torch.float32)) < 1e-5
assert apart(rounded, go(torch.float32, auto=True)) == 0.0
for name, ask in asked.items():
    torch.testing.assert_close(ask(), before[name], rtol=1e-5, atol=1e-4, msg=name)
with torch.inference_mode():
    torch.testing.assert_close(a @ b, inferred, rtol=1e-5, atol=1e-4)
w = a.clone().requires_grad_()
(g,) = torch.autograd.grad((w @ b).square().sum(), w, create_graph=True)
g.sum().backward()
torch.testing.assert_close(w.grad, torch.ones(300, 64) @ (2 * b @ b.t()), rtol=1e-4, atol=1e-2)
try:
    torch.mm(a, torch.ones(65, 300))
except RuntimeError as error:
    print(error)
"""


def test_onednn_gives_the_products_that_mkl_gives() -> None:
    if not mkl_holds_back():
        pytest.skip(
            "MKL does not hold back on this CPU (Intel's, without AVX-512, or another BLAS): nothing is replaced"
        )
    done = subprocess.run([sys.executable, "-c", CHECKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be multiplied (300x64 and 65x300)" in done.stdout  # torch's own words
