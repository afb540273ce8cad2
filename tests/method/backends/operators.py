"""What the tests of the operators run: on the CPU in the interpreter's process, or on a GPU."""

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dropkey_cli.method.mask import dropkey_mask
from tests.method.backends.kernels import SEED, oracle

SHAPE = (1, 2, 5, 70)  # B, H, N, S
HEAD_DIM = 16


def inputs(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves q, k, v."""
    torch.manual_seed(0)
    batch, heads, queries, keys = SHAPE
    return tuple(  # type: ignore[return-value]
        torch.randn(batch, heads, rows, HEAD_DIM).to(device, dtype).requires_grad_() for rows in (queries, keys, keys)
    )


def module(q: Tensor, k: Tensor, v: Tensor, ratio: Tensor, seed: Tensor, counts: Tensor) -> Tensor:
    """Attention as a module uses it: (B, N, C)."""
    from dropkey_cli.method.backends import triton

    return triton.attention(q, k, v, ratio, seed=seed, counts=counts).transpose(1, 2).flatten(2)


def checkpointed(q: Tensor, k: Tensor, v: Tensor, ratio: Tensor, seed: Tensor, counts: Tensor) -> Tensor:
    """The module, run once more in the backward; as in a model, the counts are none of its arguments."""
    out: Tensor = checkpoint(lambda q, k, v: module(q, k, v, ratio, seed, counts), q, k, v, use_reentrant=False)
    return out


def _run(function: Callable[..., Tensor], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Output, gradients and counts."""
    leaves, counts = inputs(device, dtype), torch.zeros(2, dtype=torch.int64, device=device)
    out = function(*leaves, torch.tensor(0.3, device=device), torch.tensor(SEED, device=device), counts)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    return [x.detach().cpu() for x in (out, *grads, counts)]


def transformed(how: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """Output, gradients and counts of the module as it is and compiled or checkpointed."""
    function = checkpointed if how == "checkpoint" else torch.compile(module, backend=how, fullgraph=True)
    return _run(module, device, dtype), _run(function, device, dtype)


QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL_CHECKS = (*QUICK_CHECKS, "test_aot_dispatch_dynamic")


def checked(checks: tuple[str, ...], device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Raise if an operator does not do what it declares: schema, fake tensors, autograd."""
    from dropkey_cli.method.backends import triton

    seed, ratio = torch.tensor(SEED, device=device), torch.tensor(0.3, device=device)
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    torch.library.opcheck(torch.ops.dropkey.pack_mask.default, (seed, ratio, *SHAPE, counts), test_utils=checks)
    words = triton.pack_mask(seed, SHAPE, ratio)
    for mask in (words, None):
        torch.library.opcheck(torch.ops.dropkey.attention.default, (*inputs(device, dtype), mask, 0.25), test_utils=checks)


def differentiated_twice() -> str:
    """The error of a second derivative."""
    leaves = inputs()
    out = module(*leaves, torch.tensor(0.3), torch.tensor(SEED), torch.zeros(2, dtype=torch.int64))
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    try:
        first[0].sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return str(error)
    return ""


def layouts() -> dict[str, bool]:
    """Whether strange layouts give what contiguous tensors give, to the bit."""
    from dropkey_cli.method.backends import triton

    q, k, v = (x.detach() for x in inputs())
    seed = torch.tensor(SEED)
    expected = triton.attention(q, k, v, 0.3, seed=seed)
    row = k[:, :1].expand(-1, 2, -1, -1)  # one head's keys for both
    same = triton.attention(q, row.contiguous(), v, 0.3, seed=seed)
    swapped = q.transpose(2, 3).contiguous().transpose(2, 3)  # head dim not contiguous
    return {
        "expanded": torch.equal(triton.attention(q, row, v, 0.3, seed=seed), same),
        "broadcast": torch.equal(triton.attention(q, k[:, :1], v, 0.3, seed=seed), same),
        "head dim outside": torch.equal(triton.attention(swapped, k, v, 0.3, seed=seed), expected),
        "free transpose": expected.transpose(1, 2).is_contiguous(),
    }


def own_strides() -> list[bool]:
    """Whether queries, keys, values and the output's gradient may all have different strides: output and gradients."""
    from dropkey_cli.method.backends import triton

    torch.manual_seed(0)
    plain = [torch.randn(2, 2, 70, HEAD_DIM) for _ in range(4)]
    strided = [torch.empty_like(x) for x in plain[:1]]  # (B, H, N, D) in memory, then three other orders
    strided += [torch.empty(2, 70, 2, HEAD_DIM).transpose(1, 2), torch.empty(70, 2, 2, HEAD_DIM).permute(1, 2, 0, 3)]
    strided += [torch.empty(2, 2, 70, 2 * HEAD_DIM)[..., :HEAD_DIM].transpose(0, 1)]
    results = []
    for tensors in (plain, [there.copy_(x) for there, x in zip(strided, plain, strict=True)]):
        q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
        out = triton.attention(q, k, v, 0.3, seed=torch.tensor(SEED))
        results.append([out, *torch.autograd.grad(out, (q, k, v), tensors[3])])
    return [torch.equal(a, b) for a, b in zip(*results, strict=True)]


def log_sums() -> tuple[Tensor, Tensor]:
    """``lse`` of the operator, and what it should be: log2 of the sum over the keys that are left."""
    from dropkey_cli.method.backends import triton

    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 20, HEAD_DIM), torch.randn(1, 2, 3, HEAD_DIM)
    shape = (1, 2, 20, 3)
    words = triton.pack_mask(torch.tensor(SEED), shape, 0.6)
    lost = dropkey_mask(SEED, shape, 0.6)
    sums = (q.double() @ k.double().transpose(-1, -2) * 0.25).exp().masked_fill(lost, 0).sum(-1)
    lse: Tensor = torch.ops.dropkey.attention(q, k, k, words, 0.25)[1]
    return lse, sums.log2().float()


def rows_far_apart() -> list[bool]:
    """Whether rows more than 2^31 elements apart give what contiguous ones give, to the bit: output and gradients."""
    from dropkey_cli.method.backends import triton

    rows, stride = 40, 2**26
    near = [torch.randn(1, 1, rows, HEAD_DIM, dtype=torch.float16) for _ in range(4)]  # q, k, v, gradient
    with tempfile.NamedTemporaryFile() as file:  # of which only the pages that are written take space
        memory = torch.from_file(file.name, shared=True, size=rows * stride, dtype=torch.float16)
        far = [memory[HEAD_DIM * number :].as_strided(x.shape, (0, 0, stride, 1)) for number, x in enumerate(near)]
        results = []
        for tensors in (near, [there.copy_(x) for there, x in zip(far, near, strict=True)]):
            q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
            out = triton.attention(q, k, v, 0.3, seed=torch.tensor(SEED))
            results.append([out, *torch.autograd.grad(out, (q, k, v), tensors[3])])
        return [torch.equal(a, b) for a, b in zip(*results, strict=True)]


def gradient_layouts() -> list[bool]:
    """Whether the gradients of q, k, v lie in memory as (B, N, H, D)."""
    from dropkey_cli.method.backends import triton

    leaves = inputs()
    out = triton.attention(*leaves, 0.3, seed=torch.tensor(SEED))
    return [g.transpose(1, 2).is_contiguous() for g in torch.autograd.grad(out.sum(), leaves)]


def expected_error(result: Tensor, leaves: tuple[Tensor, ...], seed: Tensor, ratio: float) -> float:
    """Largest difference of an output (B, N, C) to the oracle's."""
    q, k, v = (x.detach().double() for x in leaves)
    shape = (*q.shape[:3], k.shape[2])
    expected = oracle(q, k, v, dropkey_mask(seed, shape, ratio), None).transpose(1, 2).flatten(2)
    return (result.detach().double() - expected).abs().max().item()
