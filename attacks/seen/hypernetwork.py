"""What a shared hypernetwork's update says of the network that it generated: the parameters, and their gradient.

A peer that shares by HyperFL (Guo et al. 2025) keeps its embedding v, its extractor theta and its classifier psi. What
it says is the gradient of phi = (U, c, W, b, ...), and with z = relu(U v + c), theta = centre + W z + b and
g = dL/dtheta, which nobody says,

    dL/dU = d v^T,  dL/dc = d        so v is a quotient, as the input of any linear layer is (Phong et al. 2017)
    dL/dW = g z^T,  dL/db = g        so g is said as it is, and z is a quotient; theta follows, for W and b are public

Every part is a matrix of rank one, said as many times as it has rows or columns: what noise was added to it averages
out, and what was pruned is in another column. Heads that are a product L R say dL/dL = g (R z)^T; R z is known with v.
Heads without a bias leave z to v. One head for all chunks says sum_j g_j [z_j, 1]^T: all of g where there are no more
chunks than z has numbers, and otherwise g's projection on the span of the z_j, and what its products with W say by
the gradients of the chunks' embeddings.

After several steps all of these are sums over the way, as an update of a whole model is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from veilmesh.tasks.models.hypernetwork import Hypernetwork

__all__ = ["Reading", "read"]

Parts: TypeAlias = dict[str, Tensor]

_TURNS = 4  # of z and g by each other: one is enough without noise
_BLOCK = 1 << 15  # rows
_TINY = 1e-30
_FAINT = 1e-3  # of the largest singular value: what rounding errors would be blown up by


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """`v` (embedding,), `z` (hidden,) or in chunks (count, hidden), and `theta` by name, as they were in training.

    `gradient` (m,): what was said of dL/dtheta, up to a positive factor, as `sees` shows any such gradient (g,):
    linear, and the identity where it is `whole`. `known` (m,): 0 where nothing was said of a coordinate.
    """

    v: Tensor
    z: Tensor
    theta: Parts
    gradient: Tensor
    known: Tensor
    sees: Callable[[Tensor], Tensor]
    whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """What was said of one head, (n, k) and (n,), and which of it: 1 or 0, or all."""

    weight: Tensor
    bias: Tensor | None
    weight_said: Tensor | None
    bias_said: Tensor | None

    def rows(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The least-squares g (n,) for [z, 1], above and below its fraction line."""
        above, squares = self.weight @ z, z.square()
        below = squares.sum().expand(len(above)) if self.weight_said is None else self.weight_said @ squares
        if self.bias is not None:
            above, below = above + self.bias, below + (1 if self.bias_said is None else self.bias_said)
        return above, below

    def columns(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The same for z (k,), and last the 1, from g (n,): sums over so many rows that they need float64."""
        squares = g.double().square()
        above, below = _sums(g, self.weight), squares.sum().expand(self.weight.shape[1])
        if self.weight_said is not None:
            below = _sums(g.square(), self.weight_said)
        if self.bias is not None:
            last = squares.sum() if self.bias_said is None else squares @ self.bias_said.double()
            above = torch.cat([above, (g.double() @ self.bias.double())[None]])
            below = torch.cat([below, last[None]])
        return above, below


def _sums(g: Tensor, rows: Tensor) -> Tensor:
    """g (n,) times rows (n, k), in float64."""
    blocks = zip(torch.split(g, _BLOCK), torch.split(rows, _BLOCK), strict=True)
    return torch.stack([some.double() @ part.double() for some, part in blocks]).sum(0)


def read(net: Hypernetwork, phi: Tensor, gradient: Tensor, said: Tensor | None = None) -> Reading:
    """Read the `gradient` (d,) of the shared vector, of any length, at `phi` (d,). `said` (d,): 0 where nothing was
    said of a coordinate, and the gradient is then 0; None: all was."""
    parts = net.parts(gradient)
    masks = {} if said is None else net.parts(said)
    v = _quotient(parts, masks, net.options.embedding)
    z = net.hidden(phi, v)
    if net.options.chunk:
        return _from_chunks(net, phi, parts, v, z)
    heads = [_head(name, parts, masks) for name in net.names]
    if not net.options.rank:
        z = _refined(heads, z)
    rights = net.parts(phi)
    inner = [rights[f"heads.{name}.right"] @ z if net.options.rank else z for name in net.names]
    fractions = [head.rows(one) for head, one in zip(heads, inner, strict=True)]
    above, below = (torch.cat(some) for some in zip(*fractions, strict=True))
    g, known = above / below.clamp_min(_TINY), (below > 0).to(above)
    return Reading(v, z, net.heads(phi, z), g * known, known, lambda x: x, True)


def _quotient(parts: Parts, masks: Parts, length: int) -> Tensor:
    """v (length,), by least squares over the units of the hidden layer."""
    weight, bias = parts["mlp.weight"][:, :length].double(), parts["mlp.bias"].double()
    squares = bias.square()
    below = squares @ masks["mlp.weight"][:, :length].double() if masks else squares.sum()
    v: Tensor = (bias @ weight / below.clamp_min(_TINY)).float()
    return v


def _head(name: str, parts: Parts, masks: Parts) -> _Head:
    weight = f"heads.{name}.weight" if f"heads.{name}.weight" in parts else f"heads.{name}.left"
    bias = f"heads.{name}.bias"
    return _Head(parts[weight], parts.get(bias), masks.get(weight), masks.get(bias))


def _refined(heads: list[_Head], z: Tensor) -> Tensor:
    """z (hidden,) as the full heads have it, hundreds of thousands of rows, from what v says of it."""
    for _ in range(_TURNS):
        rows = (head.rows(z) for head in heads) if bool(z.any()) else _biases(heads)
        fractions = [head.columns(above / below.clamp_min(_TINY)) for head, (above, below) in _with(heads, rows)]
        above, below = (torch.stack(some).sum(0) for some in zip(*fractions, strict=True))
        found = above / below.clamp_min(_TINY)
        if len(found) > len(z):
            found = found[:-1] / found[-1] if bool(found[-1]) else z.double()
        elif bool(z.any()):  # no bias says how long z is: as long as v has it
            found = found * ((found @ z.double()) / (found @ found).clamp_min(_TINY))
        z = found.clamp_min(0).float()
    return z


def _with(heads: list[_Head], rows: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[_Head, tuple[Tensor, Tensor]]]:
    return zip(heads, rows, strict=True)


def _biases(heads: list[_Head]) -> Iterator[tuple[Tensor, Tensor]]:
    """g where nothing is known of z yet."""
    for head in heads:
        bias = head.weight.sum(1) if head.bias is None else head.bias  # z is nowhere negative
        yield bias, torch.ones_like(bias)


def _from_chunks(net: Hypernetwork, phi: Tensor, parts: Parts, v: Tensor, z: Tensor) -> Reading:
    """One head for all: the sum over chunks, solved for what it determines. Where that is not all, what the pieces'
    own embeddings say of each chunk is put beside it."""
    said = parts["head.weight"].T.double()  # (hidden, chunk)
    ways = z.T.double()  # (hidden, count)
    if "head.bias" in parts:
        said = torch.cat([said, parts["head.bias"][None].double()])
        ways = torch.cat([ways, ways.new_ones(1, ways.shape[1])])
    inverse = torch.linalg.pinv(ways, rtol=1e-6)
    theta, factors = net.heads(phi, z), _factors(net, z)
    g = (inverse @ said).float()
    if int(torch.linalg.matrix_rank(ways, rtol=1e-6)) == len(z):
        whole = g.reshape(-1)[: net.generated] / factors
        return Reading(v, z, theta, whole, torch.ones_like(whole), lambda x: x, True)
    projection, size = (inverse @ ways).float(), net.options.chunk
    bases, told = _by_embeddings(net, phi, parts, z)

    def sees(x: Tensor) -> Tensor:
        padded = torch.cat([x * factors, x.new_zeros(len(z) * size - len(x))]).view(len(z), size)
        return torch.cat([(projection @ padded).reshape(-1), (bases @ padded[:, :, None]).reshape(-1)])

    seen = torch.cat([g.reshape(-1), told])
    return Reading(v, z, theta, seen, torch.ones_like(seen), sees, False)


def _by_embeddings(net: Hypernetwork, phi: Tensor, parts: Parts, z: Tensor) -> tuple[Tensor, Tensor]:
    """What the gradients of the pieces' embeddings e_j say: dL/de_j = V^T diag(z_j > 0) W^T g_j, with V the columns of
    U that e_j meets. Orthonormal rows (count, k, chunk) of what is seen of every g_j, and what was said by them."""
    at = net.parts(phi)
    inputs, head = at["mlp.weight"][:, net.options.embedding :], at["head.weight"]
    ways = torch.einsum("he,jh,kh->jek", inputs, (z > 0).float(), head)
    ways[-1, :, net.generated - (len(z) - 1) * net.options.chunk :] = 0  # the last chunk's end is of no tensor
    left, lengths, right = torch.linalg.svd(ways, full_matrices=False)
    kept = lengths > _FAINT * lengths.max()
    told = torch.einsum("jer,je->jr", left, parts["chunks"]) * kept / lengths.clamp_min(_TINY)
    return right * kept[:, :, None], told.reshape(-1)


def _factors(net: Hypernetwork, z: Tensor) -> Tensor:
    """By how much theta (g,) grows where every number that the head gives grows by one."""
    nothing = torch.zeros(net.size)
    one = nothing.clone()
    net.parts(one)["head.weight"].fill_(1 / net.options.hidden)
    ones = torch.ones_like(z)
    there, here = net.heads(one, ones), net.heads(nothing, ones)
    return torch.cat([(there[name] - here[name]).reshape(-1) for name in net.names])
