import torch
import torch.nn.functional as F

from dropkey_cli.benchmark.memory import peak_bytes, saved_bytes
from dropkey_cli.benchmark.paper import paper_mask

B, H, N, D = 2, 3, 197, 64
UNIT = B * H * N * D


def qkv(dtype: torch.dtype) -> list[torch.Tensor]:
    tensor = torch.randn(B, N, 3, H, D, dtype=dtype).permute(2, 0, 3, 1, 4)
    return [part.detach().requires_grad_() for part in tensor.unbind(0)]


def test_sdpa_keeps_queries_keys_values_output_and_one_number_per_query() -> None:
    q, k, v = qkv(torch.float32)
    # The three are views of one tensor, 3 units; the output is one more; the log-sum-exp has 1 of a row's 64 numbers
    assert saved_bytes(lambda: F.scaled_dot_product_attention(q, k, v)) == 4 * UNIT * (3 + 1 + 1 / D)


def test_the_papers_listing_under_cudas_autocast_keeps_two_matrices() -> None:
    """Its dtypes written out by hand: autocast computes the softmax in float32 there, and multiplies in bfloat16."""
    q, k, v = qkv(torch.bfloat16)

    def listing() -> torch.Tensor:
        logits = (q * D**-0.5) @ k.transpose(-2, -1)
        weights = (logits + paper_mask(logits, 0.1)).softmax(-1, dtype=torch.float32)
        attended: torch.Tensor = weights.to(torch.bfloat16) @ v
        return attended

    # Copies of q, k and v that matmul wants, 3 units; N/D units for 16-bit weights, twice that for 32-bit ones
    assert saved_bytes(listing) == 2 * UNIT * (3 + 3 * N / D)  # 12.23 units


def test_what_exists_anyway_is_left_out() -> None:
    weight, x = torch.randn(8, 4, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    assert saved_bytes(lambda: F.linear(x, weight)) == 4 * (16 * 4 + 8 * 4)
    assert saved_bytes(lambda: F.linear(x, weight), leave_out=[weight]) == 4 * 16 * 4


def test_a_tensor_kept_twice_counts_once() -> None:
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda: (x * x, x[50:].square())) == 400


def test_a_cpu_does_not_count_its_peak() -> None:
    assert peak_bytes(lambda: None, torch.device("cpu")) is None
